"""What the manager does with a living sandbox: pause, resume, snapshot, restore, fork."""

import os
import threading
from types import SimpleNamespace

import pytest

from agentd.daemon.commands.ends import DESTROYED
from agentd.model.availability import Availability
from agentd.model.errors import BackendLost, Conflict, Refused, SandboxError
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox import manager as module
from agentd.sandbox.lifecycle import State
from agentd.sandbox.manager import Manager

SPEC = SandboxSpec(backend="qemu")


class Wall:
    workspace = "/workspace"
    fidelity = "memory"

    def __init__(self, said):
        self.enforcement = {}
        self.calls = []
        self.said = said
        self.error = None
        self.writing = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def _do(self, call):
        self.calls.append(call)
        if self.error:
            raise self.error

    def pause(self):
        self._do("pause")

    def resume(self):
        self._do("resume")

    def snapshot(self, folder):
        assert os.listdir(folder) == []
        self.writing.set()
        self.go_on.wait()
        with open(f"{folder}/memory", "w") as file:
            file.write(self.said)
        self._do("snapshot")

    def kill(self):
        self.error = BackendLost("killed")
        self.calls.append("kill")
        self.go_on.set()

    def wait(self, timeout=None):
        return "kill" in self.calls

    def counters(self):
        return {}


class Plain:
    """A wall that can do nothing of it."""

    def kill(self):
        pass


class Backend:
    level = IsolationLevel.MICROVM

    def __init__(self, name="qemu"):
        self.name = name
        self.walls = []
        self.most = 100

    def probe(self):
        return Availability(True)

    def plan(self, spec):
        return SimpleNamespace(spec=spec)

    def launch(self, plan):
        self.walls.append(Wall("fresh"))
        return self.walls[-1]

    def restore(self, plan, folder):
        if len(self.walls) >= self.most:
            raise SandboxError("no memory for another")
        with open(f"{folder}/memory") as file:
            self.walls.append(Wall(file.read() + " again"))
        return self.walls[-1]

    def close(self):
        pass


@pytest.fixture
def backend():
    return Backend()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "agentd" / "snapshots"


@pytest.fixture
def manager(backend, cache):
    guest = SimpleNamespace(close=lambda: None, renew=lambda *, lost: None)
    manager = Manager(lambda name: backend, lambda wall: guest)
    yield manager
    manager.close()
    assert not cache.exists() or os.listdir(cache) == ["lock"]


@pytest.fixture
def handle(manager):
    return manager.create(SPEC)


def test_pause_and_resume(manager, handle, backend):
    manager.pause(handle)
    assert handle.state is State.PAUSED
    with pytest.raises(Conflict, match="is paused"):
        _ = handle.guest
    manager.resume(handle)
    assert handle.state is State.READY
    assert handle.guest
    assert backend.walls[0].calls == ["pause", "resume"]


@pytest.mark.parametrize(
    ("before", "use", "state"),
    [
        ([], "pause", State.READY),
        (["pause"], "resume", State.PAUSED),
        ([], "snapshot", State.READY),
    ],
)
def test_what_fails_leaves_the_sandbox_as_it_was(manager, handle, backend, before, use, state):
    for name in before:
        getattr(manager, name)(handle)
    backend.walls[0].error = SandboxError("the monitor refused")
    with pytest.raises(SandboxError, match="the monitor refused"):
        getattr(manager, use)(handle)
    assert handle.state is state


def test_a_paused_sandbox_cannot_be_kept_or_forked(manager, handle):
    manager.pause(handle)
    for use in (lambda: manager.snapshot(handle), lambda: manager.fork(handle, [SPEC])):
        with pytest.raises(Conflict, match="cannot snapshot a sandbox that is paused"):
            use()
    assert handle.state is State.PAUSED


@pytest.mark.parametrize("use", ["pause", "resume", "snapshot"])
def test_what_has_ended_cannot(manager, handle, use):
    manager.destroy(handle)
    with pytest.raises(SandboxError, match=f"cannot {use} a sandbox that is ended .create a new"):
        getattr(manager, use)(handle)


def test_a_snapshot_is_restored_as_often_as_asked(manager, handle, backend, cache):
    snapshot = manager.snapshot(handle)
    assert snapshot.path.startswith(str(cache))
    handles = [manager.restore(SPEC, snapshot) for _ in range(2)]
    assert [wall.said for wall in backend.walls] == ["fresh", "fresh again", "fresh again"]
    assert all(copy.state is State.READY and copy.unreported_ms > 0 for copy in handles)
    assert handle.state is State.READY
    manager.close()
    assert not os.path.exists(snapshot.path)


def test_a_damaged_snapshot_builds_nothing(manager, handle, backend):
    snapshot = manager.snapshot(handle)
    with open(f"{snapshot.state}/memory", "a") as file:
        file.write("x")
    with pytest.raises(SandboxError, match="is damaged"):
        manager.restore(SPEC, snapshot)
    assert len(backend.walls) == len(manager.sandboxes()) == 1


def test_another_machine_than_the_one_that_was_kept_is_refused(manager, handle, backend):
    snapshot = manager.snapshot(handle)
    with pytest.raises(Refused, match="memory differs from the snapshot's"):
        manager.restore(SandboxSpec(limits=Limits(memory=2 << 30)), snapshot)
    with pytest.raises(Refused, match="memory differs"):
        manager.fork(handle, [SandboxSpec(limits=Limits(memory=2 << 30))])
    assert len(backend.walls) == 1


def test_a_backend_that_cannot_restore_is_refused(handle, manager, backend, monkeypatch):
    snapshot = manager.snapshot(handle)
    without = SimpleNamespace(
        name="qemu",
        level=backend.level,
        probe=backend.probe,
        plan=backend.plan,
        close=backend.close,
    )
    monkeypatch.setitem(manager._backends, "qemu", without)
    with pytest.raises(Refused, match="backend qemu cannot restore a sandbox"):
        manager.restore(SPEC, snapshot)


def test_forks_are_copies_of_one_moment(manager, handle, backend):
    copies = manager.fork(handle, [SPEC] * 3)
    assert [wall.said for wall in backend.walls] == ["fresh"] + ["fresh again"] * 3
    assert backend.walls[0].calls == ["snapshot"]
    assert len(copies) == 3 and all(copy.state is State.READY for copy in copies)
    assert os.listdir(manager._shelf.folder()) == ["lock"]


def test_forks_are_all_or_none(manager, handle, backend):
    backend.most = 3
    with pytest.raises(SandboxError, match="no memory for another"):
        manager.fork(handle, [SPEC] * 3)
    assert [wall.calls for wall in backend.walls] == [["snapshot"], ["kill"], ["kill"]]
    assert manager.sandboxes() == (handle,)
    assert os.listdir(manager._shelf.folder()) == ["lock"]


def test_forks_count_among_the_sandboxes(manager, handle, backend, monkeypatch):
    monkeypatch.setattr(module, "MAX_SANDBOXES", 2)
    with pytest.raises(SandboxError, match="there are 2 sandboxes already"):
        manager.fork(handle, [SPEC] * 2)
    assert manager.sandboxes() == (handle,)


def test_the_end_cuts_a_snapshot_short(manager, handle, backend):
    wall = backend.walls[0]
    wall.go_on.clear()
    errors = []

    def keep():
        try:
            manager.snapshot(handle)
        except SandboxError as error:
            errors.append(error)

    thread = threading.Thread(target=keep)
    thread.start()
    wall.writing.wait()
    assert handle.state is State.SNAPSHOTTING
    manager.destroy(handle)
    thread.join()
    assert handle.state is State.ENDED
    assert isinstance(errors[0], BackendLost)
    assert os.listdir(manager._shelf.folder()) == ["lock"]


def test_what_waited_for_its_turn_as_the_sandbox_was_ended_says_so(manager, handle, backend):
    """It said that a sandbox that is ended cannot be snapshotted, and blamed the machine."""
    wall = backend.walls[0]
    wall.go_on.clear()
    errors = []

    def keep(use):
        try:
            use(handle)
        except SandboxError as error:
            errors.append((error.code, error.infrastructure))

    first = threading.Thread(target=keep, args=(manager.snapshot,))
    first.start()
    wall.writing.wait()
    others = [
        threading.Thread(target=keep, args=(use,)) for use in (manager.snapshot, manager.pause)
    ]
    for thread in others:
        thread.start()
    handle.why = DESTROYED
    manager.destroy(handle)
    for thread in (first, *others):
        thread.join()
    assert errors == [("cancelled", False)] * 3


def test_a_running_command_is_not_cut_off(manager, handle, backend):
    handle.begin_command()
    handle.begin_command()
    for use in (lambda: manager.snapshot(handle), lambda: manager.fork(handle, [SPEC])):
        with pytest.raises(Conflict, match=f"2 commands run in sandbox {handle.id} .wait for"):
            use()
    manager.pause(handle)
    manager.resume(handle)
    handle.end_command()
    handle.end_command()
    manager.snapshot(handle)
    assert backend.walls[0].calls == ["pause", "resume", "snapshot"]


def test_what_is_asked_during_a_snapshot_waits_for_its_end(manager, handle, backend):
    wall = backend.walls[0]
    wall.go_on.clear()
    keeping = threading.Thread(target=lambda: manager.snapshot(handle))
    keeping.start()
    wall.writing.wait()
    seen = []
    asking = [
        threading.Thread(target=lambda: seen.append((handle.begin_command(), list(wall.calls)))),
        threading.Thread(target=lambda: seen.append((handle.guest, list(wall.calls)))),
    ]
    for thread in asking:
        thread.start()
    assert seen == []
    wall.go_on.set()
    for thread in (keeping, *asking):
        thread.join()
    assert seen == [(handle.guest, ["snapshot"])] * 2


def test_one_operation_waits_for_another(manager, handle, backend):
    wall = backend.walls[0]
    wall.go_on.clear()
    keeping = threading.Thread(target=lambda: manager.snapshot(handle))
    keeping.start()
    wall.writing.wait()
    pausing = threading.Thread(target=lambda: manager.pause(handle))
    pausing.start()
    assert wall.calls == []
    wall.go_on.set()
    keeping.join()
    pausing.join()
    assert wall.calls == ["snapshot", "pause"]
    assert handle.state is State.PAUSED


def test_a_wall_that_cannot_is_named_with_those_that_can(manager, handle, monkeypatch):
    monkeypatch.setattr(handle, "_wall", Plain())
    monkeypatch.setattr("agentd.sandbox.backends.able", lambda ability: ("firecracker",))
    for use, name in ((manager.pause, "pause"), (manager.snapshot, "snapshot")):
        with pytest.raises(Refused, match=f"qemu cannot {name} .*that can: firecracker"):
            use(handle)
    monkeypatch.setattr("agentd.sandbox.backends.able", lambda ability: ())
    with pytest.raises(Refused, match="no backend here can"):
        manager.resume(handle)
    assert handle.state is State.READY
