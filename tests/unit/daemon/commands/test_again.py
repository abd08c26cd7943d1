"""What follows a command again in a sandbox that may be paused."""

from types import SimpleNamespace

import pytest

from agentd.daemon.commands.again import FollowedAgain, kill_once_it_goes_on
from agentd.model.errors import BackendLost, Conflict, GuestError
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.lifecycle import State


@pytest.fixture
def handle():
    plan = SimpleNamespace(spec=None)
    backend = SimpleNamespace(name="fake", level=None)
    made = SandboxHandle(SimpleNamespace(plan=plan, backend=backend))
    made.state = State.PAUSED
    return made


def goes_on(handle, state=State.READY):
    handle.state = state
    handle.pause_over()


class Attached:
    """One whose agent answers nothing before it is told to."""

    pid, exit, cursor = 7, None, None

    def __init__(self):
        self.closed = False

    def step(self, timeout, extra_fds):
        if self.cursor is None:
            raise GuestError("no answer")
        return [("stdout", b"on")], []

    def close(self):
        self.closed = True


def test_paused_again_before_the_agent_answered_it_is_followed_later(handle):
    attached = [Attached(), Attached()]
    left = list(attached)
    running = FollowedAgain(handle, lambda: left.pop(0))
    assert running.step(0) == ([], []) and len(left) == 2
    with pytest.raises(Conflict, match="paused"):
        running.kill()
    goes_on(handle)
    assert running.step() == ([], []) and len(left) == 1
    handle.state = State.PAUSED
    assert running.step() == ([], []) and attached[0].closed
    goes_on(handle)
    running.step()
    attached[1].cursor = (0, 0)
    assert running.step() == ([("stdout", b"on")], [])
    running.close()
    assert attached[1].closed


def test_an_agent_that_does_not_answer_is_told_where_nothing_is_paused(handle):
    handle.state = State.READY
    running = FollowedAgain(handle, Attached)
    with pytest.raises(GuestError):
        running.step()
    running.close()


def test_it_ends_with_its_sandbox_and_may_be_left_before(handle):
    def attach():
        raise BackendLost("gone")

    running, left = FollowedAgain(handle, attach), FollowedAgain(handle, attach)
    left.close()
    goes_on(handle, State.ENDED)
    with pytest.raises(BackendLost):
        running.step()
    running.close()


def test_what_nobody_follows_is_killed_as_soon_as_its_sandbox_goes_on(handle):
    told = []
    handle._guest = SimpleNamespace(tell=lambda op, **about: told.append((op, about["tag"])))
    assert kill_once_it_goes_on(handle, "prc-a", lambda: told.append("over"))
    assert told == []
    goes_on(handle)
    assert told == [("signal", "prc-a"), "over"]
    assert not kill_once_it_goes_on(handle, "prc-b", lambda: told.append("over"))
    assert told[2:] == [("signal", "prc-b")]
