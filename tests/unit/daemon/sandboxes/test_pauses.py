"""What is idle is looked after for each owner by itself, whatever the sandboxes of others do."""

import threading
import time
from types import SimpleNamespace

import pytest
from tests.unit.ingest.fake import until

from agentd.daemon.sandboxes.pauses import Pauses
from agentd.sandbox import guard
from agentd.sandbox.lifecycle import State


class Idle(Pauses):
    """Sandboxes that have been idle for long. Those of mallory do not answer until ``go``."""

    def __init__(self, *owners):
        self._resting, self._expiring = set(), set()
        self.go = threading.Event()
        self.ended = []
        self.lives = [self.made(owner) for owner in owners]

    @staticmethod
    def made(owner):
        handle = SimpleNamespace(
            state=State.READY, is_idle=lambda seconds: True, used=time.monotonic()
        )
        record = SimpleNamespace(principal=owner, idle_timeout=1.0, on_idle="end")
        return SimpleNamespace(handle=handle, record=record, ending=False, left=None)

    def all(self):
        return [live for live in self.lives if live.handle.state is State.READY]

    def end(self, live, reason="destroyed"):
        if live.record.principal == "mallory":
            self.go.wait(120)
        live.handle.state = State.ENDED
        self.ended.append((live.record.principal, reason))


def idle_threads():
    return [thread for thread in threading.enumerate() if thread.name == "idle"]


def test_a_guest_that_does_not_answer_holds_up_no_other_owner():
    idle = Idle("mallory", "mallory", "bob", "carol")
    try:
        idle.rest()
        until(lambda: sorted(idle.ended) == [("bob", "idle"), ("carol", "idle")])
        until(lambda: "bob" not in idle._resting)
        idle.lives.append(idle.made("bob"))
        idle.rest()
        until(lambda: len(idle.ended) == 3)
        assert len(idle_threads()) == 1  # of hers, who has one
    finally:
        idle.go.set()
    until(lambda: len(idle.ended) == 5 and not idle_threads())


def test_that_no_thread_was_left_once_is_made_up_for(monkeypatch: pytest.MonkeyPatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    idle, told = Idle("bob"), []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        patched.setattr(guard, "tell", told.append)
        idle.rest()
    assert not idle.ended and "new thread" in str(told[0])
    idle.rest()
    until(lambda: idle.ended == [("bob", "idle")])


def test_a_wall_that_does_not_end_holds_up_no_other_owners_leases():
    over = Idle("mallory", "bob")
    for live in over.lives:
        live.left = 0.0
    caller = threading.Thread(target=over.expire, daemon=True)
    try:
        caller.start()
        until(lambda: over.ended == [("bob", "lease_expired")])
        caller.join(120)
        assert not caller.is_alive()
    finally:
        over.go.set()
    until(lambda: len(over.ended) == 2)


def test_a_lease_that_was_renewed_meanwhile_does_not_end():
    over = Idle("mallory", "mallory")
    for live in over.lives:
        live.left = 0.0
    over.expire()
    over.lives[1].left = 60.0
    over.go.set()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "lease"])
    assert over.ended == [("mallory", "lease_expired")]
