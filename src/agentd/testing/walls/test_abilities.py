"""Pauses, snapshots and forks: what a wall says that it can, it does; the rest is refused."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from agentd import AgentdError, Conflict, Refused, Sandbox, SandboxError, Snapshot, Unsupported

ABILITIES = {"pause": "pause", "resume": "pause", "snapshot": "snapshot", "fork": "fork"}
# A secret that is in one process's memory alone.
KEEPER = """
secret=$(od -An -N8 -tx8 /dev/urandom)
trap 'echo $secret > told.part; mv told.part told' USR1
echo $$ > pid.part; mv pid.part pid
while :; do sleep 0.2; done
"""
TOLD = "rm -f told; kill -USR1 $(cat pid); until cat told 2>/dev/null; do sleep 0.02; done"


def able(sandbox: Sandbox, abilities: frozenset[str], ability: str) -> None:
    """Skip where the wall does not say that it can."""
    if ability not in abilities:
        pytest.skip(f"{sandbox.info.backend} has no {ability}: see the case of its refusal")


@pytest.mark.shares_machine
@pytest.mark.parametrize("use", ABILITIES)
def test_what_a_wall_cannot_it_refuses(
    sandbox: Sandbox, abilities: frozenset[str], use: str
) -> None:
    if ABILITIES[use] in abilities:
        pytest.skip(f"{sandbox.info.backend} can")
    with pytest.raises(Refused, match=f"cannot {use} a sandbox") as caught:
        getattr(sandbox, use)()
    assert caught.value.remediation
    assert sandbox.run("echo on").text == "on\n"


@pytest.fixture
def paused(sandbox: Sandbox, abilities: frozenset[str]) -> Callable[[], None]:
    """Pauses the sandbox; skips by the wall's own reason where this one cannot be."""
    able(sandbox, abilities, "pause")

    def pause() -> None:
        try:
            sandbox.pause()
        except Refused as refusal:  # an ability is of some of its sandboxes
            if isinstance(refusal, Unsupported) and not refusal.cause:
                raise  # it has not what its backend says
            assert refusal.remediation
            pytest.skip(f"refused: {refusal}")

    return pause


def test_nothing_runs_while_it_is_paused(sandbox: Sandbox, paused: Callable[[], None]) -> None:
    with sandbox.start("while read x; do echo $x; done", stdin=True) as process:
        heard: queue.Queue[bytes] = queue.Queue()

        def read() -> None:
            for chunk in process:
                heard.put(chunk.data)

        reader = threading.Thread(target=read)
        process.write("before\n")
        reader.start()
        try:
            assert heard.get(timeout=120) == b"before\n"
            paused()
            with pytest.raises(Conflict, match="is paused"):
                sandbox.run(["true"])
            process.write("during\n")
            with pytest.raises(queue.Empty):
                heard.get(timeout=1)
            sandbox.resume()
            assert heard.get(timeout=120) == b"during\n"
        finally:
            process.kill()
            reader.join(120)
    assert sandbox.run("echo on").text == "on\n"


def test_a_paused_sandbox_ends(sandbox: Sandbox, paused: Callable[[], None]) -> None:
    paused()
    sandbox.close()
    with pytest.raises(SandboxError, match="ended"):
        sandbox.run(["true"])


@pytest.fixture
def taken(sandbox: Sandbox, abilities: frozenset[str]) -> Iterator[Snapshot]:
    """What a sandbox was when it had a file and a process with a secret."""
    able(sandbox, abilities, "snapshot")
    able(sandbox, abilities, "fork")
    sandbox.run("echo kept > a; chmod 600 a; ln -s a b", check=True)
    sandbox.run(["sh", "-c", f"setsid sh -c '{quoted(KEEPER)}' >/dev/null 2>&1 &"], check=True)
    sandbox.run("until [ -e pid ]; do sleep 0.02; done", check=True, timeout=120)
    with sandbox.snapshot() as snapshot:
        yield snapshot


def quoted(script: str) -> str:
    return script.replace("'", "'\\''")


def test_a_snapshot_keeps_files(
    sandbox: Sandbox, taken: Snapshot, restore: Callable[[Snapshot], Sandbox]
) -> None:
    sandbox.run("echo later > a", check=True)
    for _ in range(2):
        with restore(taken) as copy:
            assert copy.run("stat -c %a a; cat b").text == "600\nkept\n"
            copy.run("echo mine > a", check=True)
    assert sandbox.run("cat a").text == "later\n"


def test_a_snapshot_of_memory_keeps_processes(
    sandbox: Sandbox, taken: Snapshot, restore: Callable[[Snapshot], Sandbox]
) -> None:
    if taken.fidelity != "memory":
        pytest.skip(f"{sandbox.info.backend} keeps {taken.fidelity}")
    secret = sandbox.run(TOLD, check=True, timeout=120).text
    with restore(taken) as copy:
        assert copy.run(TOLD, check=True, timeout=120).text == secret != ""


def test_forks_are_sandboxes_of_their_own(sandbox: Sandbox, taken: Snapshot) -> None:
    with sandbox.start("sleep 1000") as process:
        with pytest.raises(AgentdError, match="1 command runs"):
            sandbox.fork(1)
        process.kill()
        process.wait()
    with ExitStack() as stack:
        copies = [stack.enter_context(copy) for copy in sandbox.fork(2)]
        assert len({sandbox.id, *(copy.id for copy in copies)}) == 3
        for copy in copies:
            assert copy.run("cat b").text == "kept\n"
        copies[0].run("echo mine > a", check=True)
        copies[1].close()
        assert sandbox.run("cat a").text == "kept\n"
        assert copies[0].run("cat a").text == "mine\n"
        drawn = [each.run("od -An -N16 -tx8 /dev/urandom").text for each in (sandbox, copies[0])]
        assert len(set(drawn)) == 2
