import errno
import os
import threading
from types import SimpleNamespace

import pytest

from agentd.model.availability import Availability
from agentd.model.errors import AgentdError, BackendLost, SandboxError
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import SandboxSpec
from agentd.sandbox import lifecycle
from agentd.sandbox import manager as module
from agentd.sandbox.lifecycle import State
from agentd.sandbox.manager import Manager


class Wall:
    workspace = "/workspace"

    def __init__(self):
        self.enforcement = {}
        self.killed = 0

    def kill(self):
        self.killed += 1

    def wait(self, timeout=None):
        return bool(self.killed)

    def counters(self):
        return {}


class Guest:
    def __init__(self):
        self.closed = 0

    def close(self):
        self.closed += 1


class Backend:
    name = "linux"
    level = IsolationLevel.NAMESPACE

    def __init__(self):
        self.walls, self.closed = [], 0
        self.error = None

    def probe(self):
        return Availability(True)

    def plan(self, spec):
        return SimpleNamespace(spec=spec)

    def launch(self, plan):
        if self.error:
            raise self.error
        self.walls.append(Wall())
        return self.walls[-1]

    def close(self):
        assert all(wall.killed for wall in self.walls)
        self.closed += 1


@pytest.fixture
def backend():
    return Backend()


@pytest.fixture
def manager(backend):
    return Manager(lambda name: backend, lambda wall: Guest())


def test_a_sandbox_comes_up_and_goes(manager, backend):
    handle = manager.create(SandboxSpec())
    assert handle.state is State.READY
    assert handle.unreported_ms > 0
    assert handle.info.backend == "linux" and handle.info.level == "namespace"
    assert len(handle.id) == 16 and handle.id.startswith("sbx-")
    guest = handle.guest
    manager.destroy(handle)
    manager.destroy(handle)
    assert (backend.walls[0].killed, guest.closed) == (1, 1)
    assert manager.sandboxes() == ()
    with pytest.raises(SandboxError, match=f"sandbox {handle.id} is ended"):
        _ = handle.guest


def test_ids_differ(manager):
    assert len({manager.create(SandboxSpec()).id for _ in range(20)}) == 20
    manager.close()


def test_a_wall_that_does_not_come_up_leaves_nothing(manager, backend):
    backend.error = SandboxError("the kernel refused")
    with pytest.raises(SandboxError, match="the kernel refused"):
        manager.create(SandboxSpec())
    assert manager.sandboxes() == ()


def test_an_agent_that_does_not_answer_costs_its_wall(backend):
    def connect(wall):
        raise BackendLost("gone")

    manager = Manager(lambda name: backend, connect)
    with pytest.raises(BackendLost):
        manager.create(SandboxSpec())
    assert backend.walls[0].killed == 1
    assert manager.sandboxes() == ()


def test_what_failed_is_told_where_its_wall_cannot_be_freed_either(backend, monkeypatch):
    def connect(wall):
        raise BackendLost("gone")

    def hold_on(wall):
        raise OSError(errno.EIO, "it holds on")

    manager = Manager(lambda name: backend, connect)
    with monkeypatch.context() as patch:
        patch.setattr(Wall, "kill", hold_on)
        with pytest.raises(BackendLost, match="gone") as caught:
            manager.create(SandboxSpec())
    assert "it holds on" in caught.value.__notes__[0]
    manager.close()
    assert (backend.walls[0].killed, manager.sandboxes()) == (1, ())


def test_closing_ends_the_sandboxes_before_their_backend(manager, backend):
    for _ in range(3):
        manager.create(SandboxSpec())
    manager.close()
    manager.close()
    assert [wall.killed for wall in backend.walls] == [1, 1, 1]
    assert backend.closed == 1


def test_one_that_cannot_be_ended_keeps_no_other_from_its_end(manager, backend):
    for _ in range(3):
        manager.create(SandboxSpec())

    def hold_on():
        raise SandboxError("it holds on")

    backend.walls[1].kill, backend.walls[1].killed = hold_on, 1
    with pytest.raises(SandboxError, match="it holds on"):
        manager.close()
    assert [wall.killed for wall in backend.walls] == [1, 1, 1]
    assert backend.closed == 1


def test_what_is_ended_while_it_is_built_leaves_no_wall(manager, backend, monkeypatch):
    build = backend.launch

    def launch(plan):
        wall = build(plan)
        (handle,) = manager.sandboxes()
        manager.destroy(handle)
        return wall

    monkeypatch.setattr(backend, "launch", launch)
    with pytest.raises(SandboxError, match="a sandbox that is ended"):
        manager.create(SandboxSpec())
    assert [wall.killed for wall in backend.walls] == [1]
    assert manager.sandboxes() == ()
    manager.close()


def test_what_is_ended_as_it_becomes_ready_stays_ended(manager, backend, monkeypatch):
    ahead = []

    def advance(state, event):
        step = lifecycle.advance(state, event)
        if event is lifecycle.LifecycleEvent.GUEST_READY:
            ahead.append(threading.Thread(target=manager.destroy, args=manager.sandboxes()))
            ahead[0].start()
            ahead[0].join(1.0)  # it is to wait for us
        return step

    monkeypatch.setattr(module, "lifecycle", SimpleNamespace(advance=advance))
    handle = manager.create(SandboxSpec())
    ahead[0].join()
    assert handle.state is State.ENDED and manager.sandboxes() == ()


def test_the_connection_to_what_is_ended_meanwhile_is_closed(backend):
    guest = Guest()

    def connect(wall):
        manager.destroy(*manager.sandboxes())
        return guest

    manager = Manager(lambda name: backend, connect)
    with pytest.raises(AgentdError):
        manager.create(SandboxSpec())
    assert (guest.closed, backend.walls[0].killed) == (1, 1)
    manager.close()


def test_a_forked_copy_ends_nothing(manager, backend, monkeypatch):
    manager.create(SandboxSpec())
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        manager.close()
    assert backend.walls[0].killed == 0
    manager.close()


def test_the_number_of_sandboxes_is_bounded(manager, monkeypatch):
    monkeypatch.setattr(module, "MAX_SANDBOXES", 2)
    for _ in range(2):
        manager.create(SandboxSpec())
    with pytest.raises(SandboxError, match="there are 2 sandboxes already"):
        manager.create(SandboxSpec())
    manager.close()


def test_a_backend_that_was_made_before_is_used_and_closed(backend):
    def load(name):
        pytest.fail("it is there already")

    manager = Manager(load, lambda wall: Guest(), {"linux": backend})
    manager.create(SandboxSpec())
    manager.close()
    assert backend.closed == 1
