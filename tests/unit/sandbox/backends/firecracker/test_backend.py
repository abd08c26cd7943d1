"""The backend on fake programs: real jail, API, agent and vsock protocol, no virtual CPU."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from agentd.linux.kvm import KvmReport
from agentd.model.errors import BackendLost, Refused, SandboxError
from agentd.model.limits import MIB, Limits
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox import backends
from agentd.sandbox.abilities import FORK, SNAPSHOT
from agentd.sandbox.backends.firecracker import snapshot
from agentd.sandbox.backends.firecracker.backend import FirecrackerBackend
from agentd.sandbox.backends.firecracker.programs import Programs
from agentd.sandbox.backends.firecracker.wall import FirecrackerWall
from agentd.sandbox.backends.vm.ending import MachineEnded
from agentd.sandbox.manager import Manager, connect

SPEC = SandboxSpec(backend="firecracker", limits=Limits(memory=64 * MIB))
Make = Callable[..., FirecrackerBackend]
pytestmark = pytest.mark.root


@pytest.fixture
def launch() -> Iterator[Callable[[FirecrackerBackend], FirecrackerWall]]:
    walls: list[FirecrackerWall] = []

    def launch(backend: FirecrackerBackend) -> FirecrackerWall:
        walls.append(backend.launch(backend.plan(SPEC)))
        return walls[-1]

    yield launch
    for wall in walls:
        wall.kill()


def run(wall: FirecrackerWall, *argv: str, stdin: bytes | None = None) -> bytes:
    guest = connect(wall)
    try:
        end, stdout, stderr, _ = guest.run(ExecRequest(argv), stdin=stdin)
        assert end.ok, stderr
        return stdout
    finally:
        guest.close()


def asked(wall: FirecrackerWall) -> list[str]:
    """What its agent was asked of sys.*, in order, with the names of the fields."""
    (path,) = Path(str(wall.save()["jail"])).glob("root/guest-*/asked")
    return path.read_text().splitlines()


# --- what it says of the machine ---


def test_it_is_registered_before_qemu() -> None:
    names = [name for name in backends.names() if name in ("firecracker", "qemu")]
    assert names[0] == "firecracker"
    backend = backends.load("firecracker")
    assert (backend.name, backend.level) == ("firecracker", FirecrackerBackend.level)
    assert FORK.of(backend)


def test_every_blocker_is_told_with_its_fix(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    backend = FirecrackerBackend(
        base=str(place),
        found=Programs("", ""),
        kvm_works=lambda: KvmReport(False, "/dev/kvm does not exist", "modprobe kvm_intel"),
    )
    found = backend.probe()
    assert not found.usable
    assert [blocker.what for blocker in found.blockers] == [
        "the jailer takes root, and this is uid 1000",
        "firecracker is not installed",
        "jailer is not installed",
        "/dev/kvm does not exist",
    ]
    assert all(blocker.fix for blocker in found.blockers)


def test_a_release_with_a_fault_is_usable_and_the_fault_is_a_note(make_backend: Make) -> None:
    found = make_backend("1.16.1").probe()
    assert found.usable
    assert found.notes[0] == "firecracker 1.16.1"
    assert any("#6074" in note for note in found.notes)
    assert "1.13.1 is too old" in make_backend("1.13.1").probe().blockers[0].what


# --- its life ---


@pytest.mark.parametrize("version", ["1.14.4", "1.15.1", "1.16.1", "1.17.0-dev"])
def test_a_command_runs_and_nothing_stays(make_backend: Make, version: str) -> None:
    manager = Manager(made={"firecracker": make_backend(version)})
    handle = manager.create(SPEC)
    end, stdout, _, _ = handle.guest.run(ExecRequest(("echo", "hello")))
    assert (end.exit_code, stdout) == (0, b"hello\n")
    manager.close()


def test_the_guest_is_set_up_before_anything_else(make_backend: Make, launch) -> None:
    wall = launch(make_backend())
    (line,) = asked(wall)
    name, _, fields = line.partition(" ")
    assert name == "sys.setup"
    for field in ("boot_id", "entropy", "hostname", "limits", "machine_id", "unix_ns"):
        assert repr(field) in fields


def test_what_is_reported_is_what_the_kernel_says(make_backend: Make, launch) -> None:
    """The fakes change no root and set no filter: that must be seen, whatever was asked for."""
    table = launch(make_backend()).enforcement
    held = {name: control.enforced for name, control in table.items() if "monitor_" in name}
    assert held == {
        "monitor_user": True,
        "monitor_capabilities": True,
        "monitor_pid_namespace": True,
        "monitor_seccomp": False,
        "monitor_root": False,
    }
    assert table["identity"].enforced
    assert table["network"].enforced


def test_input_that_is_longer_than_any_buffer_ends_in_band(make_backend: Make, launch) -> None:
    data = os.urandom(1 << 20)
    assert run(launch(make_backend()), "cat", stdin=data) == data


def test_a_machine_that_ends_loses_its_streams_and_says_how(make_backend: Make, launch) -> None:
    wall = launch(make_backend())
    signal.pidfd_send_signal(wall._pidfd, signal.SIGKILL)
    assert wall.wait(120)
    assert not wall.alive()
    with pytest.raises(MachineEnded, match="killed"):
        wall.open_stream()
    wall.kill()
    wall.kill()
    with pytest.raises(BackendLost, match="gone"):
        wall.open_stream()
    assert wall.counters() == wall.usage() == {}


def test_a_guest_that_ends_while_it_boots_is_told(make_backend: Make) -> None:
    backend = make_backend(exits={"/actions": 0})
    with pytest.raises(SandboxError):
        backend.launch(backend.plan(SPEC))


# --- pause ---


def test_paused_it_stands_still_and_resumed_its_clock_is_set(make_backend: Make, launch) -> None:
    wall = launch(make_backend("1.15.1"))
    wall.pause()
    with pytest.raises(SandboxError, match="paused"):
        wall.open_stream()
    with pytest.raises(SandboxError, match="paused"):
        wall.snapshot("/nonexistent")
    wall.resume()
    assert run(wall, "echo", "on") == b"on\n"
    assert asked(wall)[-1] == "sys.clock ['unix_ns']"


# --- snapshots ---


@pytest.fixture
def folder(place: Path) -> Path:
    folder = place / "snapshot"
    folder.mkdir(mode=0o700)
    return folder


@pytest.mark.parametrize("version", ["1.14.4", "1.16.1", "1.17.0-dev"])
def test_a_snapshot_is_restored_any_number_of_times(
    make_backend: Make, launch, folder: Path, version: str
) -> None:
    backend = make_backend(version)
    wall = launch(backend)
    assert SNAPSHOT.of(wall)
    assert wall.fidelity == "memory"
    wall.snapshot(str(folder))
    assert [line.split()[0] for line in asked(wall)] == [
        "sys.setup", "sys.freeze", "sys.clock", "sys.thaw",
    ]  # fmt: skip
    assert run(wall, "echo", "source") == b"source\n"  # it goes on
    left = os.listdir(f"{wall.save()['jail']}/root")
    assert not [name for name in left if name.startswith("new-")]
    clones = [backend.restore(backend.plan(SPEC), str(folder)) for _ in range(2)]
    try:
        shutil.rmtree(folder)  # it is only needed while it is restored
        for clone in clones:
            # Its own random numbers first, and only then what was stopped goes on.
            assert [line.split()[0] for line in asked(clone)] == ["sys.setup", "sys.thaw"]
            assert run(clone, "echo", "clone") == b"clone\n"
        assert len({clone.id for clone in (wall, *clones)}) == 3
    finally:
        for clone in clones:
            clone.kill()


def test_a_snapshot_of_a_restored_machine_is_one_too(
    make_backend: Make, launch, folder: Path, place: Path
) -> None:
    backend = make_backend()
    launch(backend).snapshot(str(folder))
    clone = backend.restore(backend.plan(SPEC), str(folder))
    try:
        (place / "second").mkdir()
        clone.snapshot(str(place / "second"))
    finally:
        clone.kill()
    assert snapshot.read(str(place / "second")) == snapshot.read(str(folder))


def test_what_is_kept_is_read_only_and_sparse(make_backend: Make, launch, folder: Path) -> None:
    launch(make_backend()).snapshot(str(folder))
    assert sorted(os.listdir(folder)) == ["firecracker.json", "memory", "state"]
    # The folder keeps others out; the monitor that gets these two bound into its jail may read.
    for name in ("memory", "state"):
        assert os.stat(folder / name).st_mode & 0o777 == 0o444
    memory = os.stat(folder / "memory")
    assert memory.st_size == (64 + 160) * MIB
    assert memory.st_blocks * 512 < 1 * MIB


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "1.15.1"}, "another Firecracker"),
        ({"cpu": "Ancient"}, "another CPU"),
        ({"memory": 1}, "another memory size"),
        ({"vcpus": 7}, "another number of CPUs"),
    ],
)
def test_a_snapshot_that_does_not_fit_is_refused(
    make_backend: Make, launch, folder: Path, change: dict[str, object], words: str
) -> None:
    backend = make_backend()
    launch(backend).snapshot(str(folder))
    about = snapshot.read(str(folder))
    changed = msgspec.structs.replace(about, **change)
    (folder / "firecracker.json").write_bytes(msgspec.json.encode(changed))
    with pytest.raises(Refused, match=words):
        backend.restore(backend.plan(SPEC), str(folder))


def test_a_release_whose_clones_could_not_be_reached_restores_none(
    make_backend: Make, launch, folder: Path
) -> None:
    launch(make_backend("1.16.1")).snapshot(str(folder))
    about = msgspec.structs.replace(snapshot.read(str(folder)), version="1.16.0")
    (folder / "firecracker.json").write_bytes(msgspec.json.encode(about))
    backend = make_backend("1.16.0")
    with pytest.raises(Refused, match="#5958"):
        backend.restore(backend.plan(SPEC), str(folder))


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", json.dumps({"version": 1}).encode()])
def test_a_folder_that_is_no_snapshot_is_told(
    make_backend: Make, folder: Path, text: bytes
) -> None:
    backend = make_backend()
    (folder / "firecracker.json").write_bytes(text)
    with pytest.raises(SandboxError, match="not one of backend firecracker"):
        backend.restore(backend.plan(SPEC), str(folder))


def test_a_damaged_snapshot_is_told_and_nothing_stays(
    make_backend: Make, launch, folder: Path
) -> None:
    backend = make_backend()
    launch(backend).snapshot(str(folder))
    (folder / "state").write_bytes(b"garbage")
    with pytest.raises(SandboxError):
        backend.restore(backend.plan(SPEC), str(folder))


def test_one_that_cannot_be_taken_leaves_the_machine_running(
    make_backend: Make, launch, place: Path
) -> None:
    wall = launch(make_backend())
    with pytest.raises(SandboxError, match="cannot be kept"):
        wall.snapshot(str(place / "absent"))
    assert run(wall, "echo", "on") == b"on\n"
    assert [line.split()[0] for line in asked(wall)][-1] == "sys.thaw"


def test_what_was_stopped_goes_on_though_nobody_was_told_that_it_was(
    make_backend: Make, launch, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = launch(make_backend())
    tell = wall._tell

    def lost(*operations: str) -> None:
        tell(*operations)
        monkeypatch.undo()
        raise SandboxError("no answer within 30 s")

    monkeypatch.setattr(wall, "_tell", lost)
    with pytest.raises(SandboxError, match="no answer"):
        wall.snapshot(str(folder))
    assert [line.split()[0] for line in asked(wall)][1:] == ["sys.freeze", "sys.clock", "sys.thaw"]


def test_a_machine_that_dies_over_it_is_told(make_backend: Make, launch, folder: Path) -> None:
    wall = launch(make_backend(exits={"/snapshot/create": 149}))
    with pytest.raises(SandboxError):
        wall.snapshot(str(folder))
    assert wall.wait(120)
