"""A request waits until another principal allows it; whatever comes of it is in the log."""

import os
import threading

import pytest
from tests.unit.daemon.known import act, allowing
from tests.unit.ingest.fake import until

from agentd.audit.errors import AuditError
from agentd.daemon.admission.acts import Place
from agentd.daemon.admission.approvals import Approvals
from agentd.daemon.admission.gate import Gate
from agentd.daemon.admission.parked import ApprovalDenied, ApprovalExpired, Parked, ended_note
from agentd.daemon.admission.records import Records
from agentd.daemon.commands.ends import LEASE_OVER
from agentd.daemon.config.schema import ApprovalSettings as Settings
from agentd.daemon.config.values import Duration
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model.errors import AgentdError, Forbidden, Full, Refused, SandboxEnded
from agentd.model.isolation import IsolationLevel
from agentd.model.principal import Principal
from agentd.model.spec import SandboxSpec

BOB = Principal("bob", frozenset({"approve", "read"}), "key")


@pytest.fixture
def approvals(tmp_path):
    store = SqliteStore(str(tmp_path / "state"))
    settings = Settings(ttl=Duration(600))
    yield Approvals(store, lambda: settings)
    store.close()


@pytest.fixture
def parked(approvals, kept):
    made = Parked(approvals)
    made.log = kept.log
    return made


class Asking:
    """An act that waits in a thread of its own."""

    def __init__(self, parked, kept, asked, approvals, **options):
        self.outcome = []
        policy = allowing(approve=True)
        gate = Gate(policy, Records(kept.log, None), parked)

        def work():
            try:
                self.outcome.append(gate.open(asked, **options))
            except AgentdError as error:
                self.outcome.append(error)

        self._thread = threading.Thread(target=work)
        self._thread.start()
        until(lambda: bool(approvals.ls(BOB)) or bool(self.outcome))
        self.id = approvals.ls(BOB)[0].id if approvals.ls(BOB) else ""

    def end(self):
        self._thread.join(120)
        assert not self._thread.is_alive()
        return self.outcome[0]


def test_what_is_approved_is_admitted(parked, approvals, kept):
    asking = Asking(parked, kept, act(), approvals)
    assert asking.outcome == []
    approvals.decide(BOB, asking.id, True, "as agreed")
    assert asking.end().decision.allow
    admitted, asked, decided = kept.records()
    kinds = ("admission", "approval_asked", "approval_decided")
    assert (admitted.kind, asked.kind, decided.kind) == kinds
    assert {r.request for r in kept.records()} == {"req-1"}
    assert asked.fields == {"approval": asking.id}
    assert decided.fields == {"approval": asking.id, "allowed": True, "by": "bob"}


def test_what_is_denied_is_refused_by_whom_and_why(parked, approvals, kept):
    asking = Asking(parked, kept, act(), approvals)
    approvals.decide(BOB, asking.id, False, "not on a Friday")
    error = asking.end()
    assert isinstance(error, ApprovalDenied) and isinstance(error, Refused)
    assert (error.code, error.cause) == ("approval_denied", "bob: not on a Friday")
    _, _, decided, denied = kept.records()
    assert decided.fields["allowed"] is False and decided.fields["by"] == "bob"
    assert (denied.kind, denied.fields["approval"]) == ("denial", "approval_denied")


def test_whoever_asked_cannot_approve_it(parked, approvals, kept):
    both = Principal("alice", frozenset({"run", "approve", "read"}), "key")
    asking = Asking(parked, kept, act(who=both), approvals)
    with pytest.raises(Forbidden, match="cannot decide"):
        approvals.decide(both, asking.id, True)
    assert asking.outcome == []
    approvals.decide(BOB, asking.id, False)
    assert isinstance(asking.end(), ApprovalDenied)


def test_what_nobody_decides_on_in_time_is_refused(tmp_path, kept):
    store = SqliteStore(str(tmp_path / "state"))
    parked = Parked(Approvals(store, lambda: Settings(ttl=Duration(0.05))))
    parked.log = kept.log
    with pytest.raises(ApprovalExpired) as caught:
        parked.approve(act(), allowing(approve=True).decision)
    store.close()
    assert caught.value.code == "approval_expired"
    assert kept.kinds() == ["approval_asked", "approval_expired"]


def test_when_the_daemon_ends_whoever_waits_is_told(parked, approvals, kept):
    asking = Asking(parked, kept, act(), approvals)
    approvals.close()
    error = asking.end()
    assert isinstance(error, Full) and "about to end" in error.message
    assert [r.kind for r in kept.records()][-2:] == ["approval_expired", "denial"]
    with pytest.raises(Full):
        parked.approve(act(), allowing(approve=True).decision)


def test_an_act_of_a_sandbox_that_has_just_ended_is_told_why(parked, approvals, kept):
    """It came to be decided on after all that waited were told."""
    place = Place(SandboxSpec(), IsolationLevel.NAMESPACE, "sbx-1")
    approvals.sandbox_ended("sbx-1", ended_note(LEASE_OVER))
    with pytest.raises(SandboxEnded, match="sbx-1 ended before") as caught:
        parked.approve(act(place=place), allowing(approve=True).decision)
    assert caught.value.code == "lease_expired"
    assert kept.kinds() == ["approval_asked"]


def test_one_whose_caller_has_gone_is_withdrawn(parked, approvals, kept):
    ours, theirs = os.pipe()
    try:
        asking = Asking(parked, kept, act(), approvals, cancel=ours)
        assert asking.outcome == []
    finally:
        os.close(theirs)
    error = asking.end()
    os.close(ours)
    assert error.code == "cancelled"
    assert [view.state for view in approvals.ls(BOB)] == ["withdrawn"]
    with pytest.raises(AgentdError, match="withdrawn"):
        approvals.decide(BOB, asking.id, True)
    assert kept.kinds() == ["admission", "approval_asked", "denial"]


def test_what_cannot_be_written_down_waits_for_nobody(parked, approvals, kept):
    """It was listed until its time was over, for somebody to decide on, and took a place."""
    kept.log.close()
    with pytest.raises(AuditError):
        parked.approve(act(), allowing(approve=True).decision)
    assert [view.state for view in approvals.ls(BOB)] == ["withdrawn"]


@pytest.mark.parametrize("allow", [True, False])
def test_what_is_decided_as_its_caller_goes_is_not_done_and_written_down(
    parked, approvals, kept, allow, monkeypatch
):
    ours, theirs = os.pipe()
    wait, left = approvals.wait, [theirs]

    def wait_and_go(id_, timeout=None):
        found = wait(id_, timeout)
        if found.state != "pending" and left:
            os.close(left.pop())
        return found

    monkeypatch.setattr(approvals, "wait", wait_and_go)
    asking = Asking(parked, kept, act(), approvals, cancel=ours)
    approvals.decide(BOB, asking.id, allow)
    error = asking.end()
    os.close(ours)
    assert error.code == "cancelled"
    assert kept.kinds() == ["admission", "approval_asked", "approval_decided", "denial"]
    assert kept.records()[2].fields == {"approval": asking.id, "allowed": allow, "by": "bob"}


def test_whoever_decides_sees_all_of_it_but_values_of_an_environment(parked, approvals, kept):
    place = Place.new(SandboxSpec(net="host", env={"B": "0thersecret"}))
    parameters = {"command": "make", "args": ["x"], "env": {"TOKEN": "t0psecret"}}
    asking = Asking(parked, kept, act(parameters=parameters, place=place), approvals)
    (view,) = approvals.ls(BOB)
    approvals.decide(BOB, asking.id, True)
    asking.end()
    assert view.asked["capability"] == "shell.exec.v1"
    assert view.asked["parameters"] == {"command": "make", "args": ["x"], "env": ["TOKEN"]}
    assert (view.asked["sandbox"], view.asked["net"]) == ("a new one", "host")
    assert view.asked["policy"]["obligations"]["approve"] is True
    assert view.principal == "alice" and view.request == "req-1"
    for secret in ("t0psecret", "0thersecret"):
        assert secret not in str(view) and secret.encode() not in kept.raw()


def test_a_request_that_nobody_could_read_is_not_asked(parked, kept):
    large = act(parameters={"code": "x" * (64 << 10)})
    with pytest.raises(AgentdError, match="nobody could read it"):
        parked.approve(large, allowing(approve=True).decision)
    assert kept.kinds() == []
