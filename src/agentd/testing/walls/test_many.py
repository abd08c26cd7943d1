"""Many at once: commands in one sandbox, and sandboxes beside each other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from agentd import Full, Process, Sandbox
from agentd.testing.walls.claims import own_kernel

EIGHT = range(8)


@pytest.mark.shares_machine
def test_eight_threads_in_one_sandbox(sandbox: Sandbox) -> None:
    def work(n: int) -> tuple[str, int | None, int]:
        echoed = sandbox.run(["cat"], stdin=str(n) * 50_000)
        failed = sandbox.run(f"exit {n + 1}")
        return echoed.text[:1], failed.exit_code, len(echoed.stdout)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, EIGHT)) == [(str(n), n + 1, 50_000) for n in EIGHT]


@pytest.mark.shares_machine
def test_files_and_commands_at_once(sandbox: Sandbox, workspace: str) -> None:
    def work(n: int) -> bytes:
        path = f"{workspace}/file{n}"
        sandbox.files.write(path, bytes([n]) * 300_000)
        counted = sandbox.run(["wc", "-c", path]).text.split()[0]
        assert counted == "300000"
        return sandbox.files.read(path, 0, 2)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, EIGHT)) == [bytes([n]) * 2 for n in EIGHT]


@pytest.mark.shares_machine
def test_two_that_wait_for_each_other_run_side_by_side(sandbox: Sandbox) -> None:
    sandbox.run("mkfifo pipe")
    with ThreadPoolExecutor(2) as pool:
        reader = pool.submit(sandbox.run, "cat pipe")
        writer = pool.submit(sandbox.run, "echo through > pipe")
        assert writer.result().exit_code == 0
        assert reader.result().text == "through\n"


def test_many_sandboxes_at_once_are_as_many(make: Callable[..., Sandbox]) -> None:
    first = make()
    count = 4 if own_kernel(first) else 8  # each a boot

    def work(n: int) -> tuple[str, str]:
        sandbox = make() if n else first
        sandbox.run(f"echo {n} > own; echo {n} > $HOME/own")
        return sandbox.id, sandbox.run("cat own; ls").text

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(work, range(count)))
    assert len({name for name, _ in results}) == count
    assert [text for _, text in results] == [f"{n}\nown\n" for n in range(count)]


@pytest.mark.shares_machine
def test_one_command_too_many_is_refused_and_harms_nobody(sandbox: Sandbox) -> None:
    if sandbox.url or sandbox.info.level == "microvm":
        pytest.skip("the bound is the host's, the same for all")
    with ExitStack() as stack:
        running: list[Process] = []
        with pytest.raises(Full, match="of this sandbox are the most") as caught:
            for _ in range(130):
                process = stack.enter_context(sandbox.start("read line; echo $line", stdin=True))
                running.append(process)
        assert "use another sandbox" in caught.value.remediation
        assert len(running) == 120
        for refused in (
            lambda: sandbox.run("true"),
            lambda: sandbox.files.write("/tmp/a", b"a"),
            lambda: sandbox.files.list("/tmp"),
        ):
            with pytest.raises(Full):
                refused()
        running[0].signal(9)
        assert running[0].wait().signal == 9
        assert sandbox.run("echo room").text == "room\n"
        running[1].write("still here\n")
        assert running[1].wait().exit_code == 0
        for process in running[2:]:
            process.kill()


def test_closing_one_leaves_its_neighbour(make: Callable[..., Sandbox]) -> None:
    first, second = make(), make()
    with second.start("echo up; read line; echo $line", stdin=True) as process:
        chunks = iter(process)
        assert next(chunks).data == b"up\n"
        first.close()
        process.write("still here\n")
        assert b"".join(chunk.data for chunk in chunks) == b"still here\n"


def test_one_after_another(make: Callable[..., Sandbox]) -> None:
    for n in range(10):
        sandbox = make()
        assert sandbox.run(f"test ! -e seen; touch seen; echo {n}").text == f"{n}\n"
        few = own_kernel(sandbox)
        sandbox.close()
        if few and n == 2:  # each a boot
            break
