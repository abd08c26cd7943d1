"""A compile is waited for as long as it works: by what it does, not by the clock."""

import os
import signal

import pytest

from agentd.policy import patience
from agentd.policy.build import worker
from agentd.policy.process import WorkerSlow
from agentd.policy.store import PolicyStore


def _child() -> int:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return int(file.read().split()[-1])


def test_a_compile_that_works_is_waited_for_beyond_the_time_of_one_that_hangs(monkeypatch):
    monkeypatch.setattr(patience, "IDLE_SECONDS", 0.1)  # it computes for longer than that
    PolicyStore("strict", workers=1).close()


def test_what_was_waited_for_and_how_long_and_the_fix_are_said_of_one_that_hangs(monkeypatch):
    monkeypatch.setattr(patience, "IDLE_SECONDS", 0.1)
    with worker() as process:
        process.engine()  # it has started
        os.kill(_child(), signal.SIGSTOP)
        with pytest.raises(WorkerSlow) as raised:
            process.work(b"v", b"", "the compile of the policy bundle strict")
    said = str(raised.value)
    assert said.startswith("the compile of the policy bundle strict was given up: no answer came")
    assert "it did nothing, for it is stopped" in said
    assert "see that nothing stops agentd's processes" in said


def test_one_that_has_no_processor_is_given_up_at_last(monkeypatch):
    monkeypatch.setattr(patience, "MOST_SECONDS", 0.0)
    # It begins before it is asked; what it is asked takes longer than the first look at it.
    monkeypatch.setattr(patience, "IDLE_SECONDS", 0.02)
    with pytest.raises(WorkerSlow, match=r"it got .* s of a processor .*give agentd more"):
        PolicyStore("strict", workers=1)


def test_a_decision_that_nobody_makes_is_no_errno(monkeypatch):
    monkeypatch.setattr("agentd.policy.process._WAIT_SECONDS", 0.4)
    with worker() as process:
        process.engine()
        os.kill(_child(), signal.SIGSTOP)
        with pytest.raises(WorkerSlow, match=r"did not decide within 0\.5 s"):
            process.ask(b"d", b"{}", 0.1)
