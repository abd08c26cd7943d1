"""Pause, snapshots and forks as the SDK offers them, sync and async."""

import asyncio
import os

import pytest

from agentd import AsyncSandbox, Sandbox
from agentd.model.errors import Conflict, InvalidInput, NotFound, Refused


@pytest.fixture
def sandbox(machines):
    with Sandbox.create(backend="qemu", memory="64M", env={"A": "1", "B": "1"}) as made:
        yield made


def test_a_paused_sandbox_refuses_work_and_names_the_fix(sandbox):
    sandbox.pause()
    for use in (lambda: sandbox.run("true"), sandbox.ping, lambda: sandbox.files.list("/")):
        with pytest.raises(Conflict, match=rf"{sandbox.id} is paused \(resume it first\)"):
            use()
    with pytest.raises(Conflict, match="cannot pause a sandbox that is paused"):
        sandbox.pause()
    sandbox.resume()
    assert sandbox.run("echo on").text == "on\n"


def test_a_command_goes_on_after_a_pause(sandbox):
    with sandbox.start("read x; echo got $x", stdin=True) as process:
        sandbox.pause()
        process.write("it\n")
        sandbox.resume()
        assert b"".join(chunk.data for chunk in process) == b"got it\n"


def test_a_paused_sandbox_closes(machines):
    with Sandbox.create() as sandbox:
        sandbox.pause()
    assert machines.walls[0].process.returncode is not None


def test_a_snapshot_is_built_upon_and_deleted_after(sandbox, machines):
    sandbox.run("echo kept > a")
    with sandbox.snapshot() as snapshot:
        assert (snapshot.backend, snapshot.fidelity) == ("qemu", "files")
        assert snapshot.id.startswith("snp-")
        assert snapshot.spec.limits.memory == 64 << 20
        sandbox.run("echo changed > a")
        with Sandbox.create(snapshot=snapshot, env={"B": "2"}, timeout=9) as copy:
            result = copy.run("cat a; echo $A$B")
        assert result.text == "kept\n12\n"
        assert machines.specs[-1].limits.memory == 64 << 20
        assert machines.specs[-1].limits.timeout == 9
    assert not os.path.exists(snapshot.path)
    assert sandbox.run("cat a").text == "changed\n"


def test_a_named_snapshot_outlives_its_block(sandbox, tmp_path):
    with sandbox.snapshot(tmp_path / "kept") as snapshot:
        pass
    assert snapshot.path == str(tmp_path / "kept")
    with Sandbox.create(snapshot=snapshot.path) as copy:
        assert copy.run("true").status == "ok"
    snapshot.delete()
    with pytest.raises(NotFound, match="no snapshot at"):
        Sandbox.create(snapshot=tmp_path / "kept")


@pytest.mark.parametrize(
    ("options", "name"),
    [({"memory": "1G"}, "memory"), ({"image": "other"}, "image"), ({"user": "root"}, "user")],
)
def test_the_machine_of_a_snapshot_cannot_be_chosen(sandbox, machines, options, name):
    words = f"has the snapshot's {name} .leave {name} out"
    with sandbox.snapshot() as snapshot, pytest.raises(InvalidInput, match=words):
        Sandbox.create(snapshot=snapshot, **options)
    assert len(machines.walls) == 1


def test_another_backend_than_the_snapshots_is_refused(sandbox):
    words = "is of backend qemu, not firecracker"
    with sandbox.snapshot() as snapshot, pytest.raises(Refused, match=words):
        Sandbox.create(snapshot=snapshot, backend="firecracker")


def test_forks_have_its_files_and_lives_of_their_own(sandbox):
    sandbox.run("echo one > a")
    copies = sandbox.fork(2)
    for number, copy in enumerate(copies):
        with copy:
            assert copy.run(f"cat a; echo {number} > a; cat a").text == f"one\n{number}\n"
    assert sandbox.run("cat a").text == "one\n"
    assert len({sandbox.id, *(copy.id for copy in copies)}) == 3


@pytest.mark.parametrize("count", [0, 65, -1])
def test_the_number_of_forks_is_bounded(sandbox, count):
    with pytest.raises(InvalidInput, match=f"cannot fork {count} sandboxes .give 1 to 64"):
        sandbox.fork(count)


@pytest.mark.parametrize("use", ["pause", "resume", "snapshot", "fork"])
def test_a_wall_that_cannot_says_which_can(backend, use, monkeypatch):
    monkeypatch.setattr("agentd.sandbox.backends.able", lambda ability: ("firecracker", "qemu"))
    with Sandbox.create() as sandbox:
        with pytest.raises(Refused) as caught:
            getattr(sandbox, use)()
        assert str(caught.value) == (
            f"backend linux cannot {use} a sandbox (use a backend that can: firecracker, qemu)"
        )
        assert sandbox.run("true").status == "ok"


def test_a_sandbox_with_host_directories_is_not_kept(machines, tmp_path):
    words = "host directories are mounted in it"
    with Sandbox.create(mounts=[f"{tmp_path}:/data"]) as sb, pytest.raises(Refused, match=words):
        sb.snapshot()


def test_async_pause_snapshot_and_fork(machines):
    async def main():
        async with await AsyncSandbox.create() as sandbox:
            await sandbox.run("echo one > a")
            await sandbox.pause()
            with pytest.raises(Conflict, match="is paused"):
                await sandbox.run("true")
            await sandbox.resume()
            copies = await sandbox.fork(2)
            async with await sandbox.snapshot() as snapshot:
                copies.append(await AsyncSandbox.create(snapshot=snapshot))
            found = []
            for copy in copies:
                async with copy:
                    found.append((await copy.run("cat a")).text)
            return found

    assert asyncio.run(main()) == ["one\n"] * 3


def test_cancelling_a_fork_ends_what_it_made(machines):
    async def main():
        async with await AsyncSandbox.create() as sandbox:
            task = asyncio.create_task(sandbox.fork(2))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while len(machines.walls) < 3 or not all(
                wall.process.returncode is not None for wall in machines.walls[1:]
            ):
                await asyncio.sleep(0.01)
            return (await sandbox.run("echo alive")).text

    assert asyncio.run(main()) == "alive\n"


def test_a_snapshot_without_a_name_is_not_the_folder_one_stands_in():
    """As of a variable that is not set; ``agentd run --snapshot ""`` is refused alike."""
    with pytest.raises(InvalidInput, match=r"snapshot '' names nothing \(give an id, a path"):
        Sandbox.create(snapshot="", embedded=True)
    with pytest.raises(InvalidInput, match="snapshot '' names nothing"):
        asyncio.run(AsyncSandbox.create(snapshot="", embedded=True))
