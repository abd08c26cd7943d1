"""Whatever is in doubt is a refusal, and every answer is in the log before anything is done."""

import json

import pytest
from tests.unit.daemon.known import DIGEST, Says, act, allowing

from agentd.audit.errors import AuditError
from agentd.daemon.admission.acts import Place
from agentd.daemon.admission.gate import Gate
from agentd.daemon.admission.records import Records, secrets
from agentd.model.decision import Decision
from agentd.model.errors import AgentdError, PolicyDenied, Refused, Undecided
from agentd.model.spec import SandboxSpec

OTHER = "sha256:" + "b" * 64


def test_without_a_policy_all_is_admitted_and_written_down(gate, kept):
    made = gate().open(act())
    assert made.decision.allow and made.decision.bundle == ""
    (record,) = kept.records()
    assert (record.kind, record.principal, record.request) == ("admission", "alice", "req-1")
    assert record.fields["reasons"] == ["no policy is configured"]


def test_what_the_policy_allows_is_admitted_with_its_obligations(gate, kept):
    policy = allowing(no_network=True)
    made = gate(policy).open(act(parameters={"command": "make"}))
    assert made.decision is policy.decision
    assert policy.asked[0].parameters == {"command": "make"}
    (record,) = kept.records()
    assert record.fields["bundle"] == DIGEST
    assert record.fields["obligations"]["no_network"] is True


def test_what_has_no_end_is_on_disk_before_it_is_done():
    """Of what executes the end is waited for, and brings the admission along."""
    asked = []

    class Log:
        def submit(self, event, *, lazily=False):
            asked.append(("submitted", lazily))

        def append(self, event, *, synced=True):
            asked.append(("on disk" if synced else "written", event.kind))

    gate = Gate(None, Records(Log(), None))
    gate.open(act(executes=True))
    gate.open(act("fs.write.v1"))
    gate.open(act("sandbox.create.v1"), lasting=False)
    assert asked == [("submitted", True), ("on disk", "admission"), ("written", "admission")]


def test_nothing_is_admitted_that_cannot_be_written_down(gate, kept):
    kept.log.close()
    for about in (act(executes=True), act("fs.write.v1"), act("sandbox.create.v1")):
        with pytest.raises(AuditError, match="closed"):
            gate().open(about, lasting=about.name != "sandbox.create.v1")


def test_what_it_denies_is_refused_with_its_reasons(gate, kept):
    policy = Says(Decision(False, ("shell.off: no", "and never"), bundle=DIGEST))
    with pytest.raises(PolicyDenied) as caught:
        gate(policy).open(act())
    assert caught.value.cause == "shell.off: no; and never"
    (record,) = kept.records()
    assert record.kind == "denial"
    assert record.fields["reasons"] == ["shell.off: no", "and never"]


def test_what_it_cannot_decide_is_refused_as_that(gate, kept):
    policy = Says(Decision(False, bundle=DIGEST, undecided="it divides by zero"))
    with pytest.raises(Undecided) as caught:
        gate(policy).open(act())
    assert (caught.value.code, caught.value.cause) == ("policy_undecided", "it divides by zero")
    (record,) = kept.records()
    assert record.kind == "undecided" and record.fields["undecided"] == "it divides by zero"
    assert "obligations" not in record.fields


@pytest.mark.parametrize(
    "decision", [Decision(False), Decision(False, undecided="x"), Decision(False, ("r" * 10_000,))]
)
def test_a_long_or_missing_reason_does_not_matter(gate, decision):
    with pytest.raises(Refused) as caught:
        gate(Says(decision)).open(act())
    assert len(caught.value.cause) <= 500


class TestExpectedBundle:
    def test_the_one_in_force_is_admitted(self, gate, kept):
        gate(Says()).open(act(bundle=DIGEST))
        assert kept.kinds() == ["admission"]

    @pytest.mark.parametrize("policy", [None, Says(digest=OTHER)])
    def test_another_or_none_is_refused_and_not_asked(self, gate, kept, policy):
        with pytest.raises(PolicyDenied, match="does not allow"):
            gate(policy).open(act(bundle=DIGEST))
        (record,) = kept.records()
        assert record.kind == "denial" and DIGEST in record.fields["reasons"][0]
        assert policy is None or not policy.asked

    def test_one_that_is_changed_while_it_is_asked_is_refused(self, gate, kept):
        """What decided counts, not what was in force a moment before."""
        policy = Says(Decision(True, bundle=OTHER), digest=DIGEST)
        with pytest.raises(PolicyDenied):
            gate(policy).open(act(bundle=DIGEST))
        assert kept.kinds() == ["denial"]

    def test_a_text_without_end_is_told_in_part(self, gate, kept):
        with pytest.raises(PolicyDenied) as caught:
            gate(Says()).open(act(bundle="x" * 100_000))
        assert len(str(caught.value)) < 1000
        assert len(kept.raw()) < 2000


class Approvals:
    def __init__(self, error=None):
        self.error = error
        self.asked = []

    def approve(self, act, decision, cancel):
        self.asked.append(act)
        if self.error is not None:
            raise self.error


class TestApproval:
    def test_where_nobody_could_approve_it_is_refused(self, gate, kept):
        with pytest.raises(PolicyDenied, match="there is no approver here"):
            gate(allowing(approve=True)).open(act())
        assert kept.kinds() == ["admission", "denial"]

    def test_it_is_admitted_once_it_is_approved(self, gate):
        approvals = Approvals()
        gate(allowing(approve=True), approvals=approvals).open(act())
        assert len(approvals.asked) == 1

    def test_what_needs_none_asks_nobody(self, gate):
        approvals = Approvals()
        gate(allowing(), approvals=approvals).open(act())
        assert approvals.asked == []

    def test_one_that_is_not_given_is_a_denial(self, gate, kept):
        approvals = Approvals(AgentdError("nobody did"))
        with pytest.raises(AgentdError, match="nobody did"):
            gate(allowing(approve=True), approvals=approvals).open(act())
        admitted, denied = kept.records()
        assert (admitted.kind, denied.kind) == ("admission", "denial")
        assert denied.fields["approval"] == "internal"


def test_what_is_begun_says_so(gate, kept):
    made = gate().open(act(signer="key-9"))
    made.begin()
    admitted, begun = kept.records()
    assert (begun.kind, begun.request) == ("start", "req-1")
    assert (admitted.fields["signer"], begun.fields["signer"]) == ("key-9", "key-9")


def test_what_is_admitted_and_then_cannot_be_held_to_is_a_denial(gate, kept):
    made = gate(allowing(no_network=True)).open(act())
    with pytest.raises(PolicyDenied), made.obliging() as obligations:
        assert obligations.no_network
        raise PolicyDenied("the policy allows no network here", cause="it has 'host'")
    admitted, denied = kept.records()
    assert (admitted.kind, denied.kind) == ("admission", "denial")
    assert denied.fields["reasons"] == ["the policy allows no network here: it has 'host'"]
    assert denied.fields["code"] == "policy_denied"


def test_answers_are_counted(gate):
    made = gate(Says())
    made.open(act())
    made.open(act(bundle=DIGEST))
    with pytest.raises(PolicyDenied):
        made.open(act(bundle=OTHER))
    assert made.decisions() == {"allow": 2, "deny": 1, "undecided": 0}
    unsure = gate(Says(Decision(False, undecided="x")))
    with pytest.raises(Undecided):
        unsure.open(act())
    assert unsure.decisions() == {"allow": 0, "deny": 0, "undecided": 1}


def test_where_nothing_can_be_written_nothing_is_admitted(gate, kept):
    kept.log.close()
    for policy in (None, allowing(), Says(Decision(False))):
        with pytest.raises(AuditError):
            gate(policy).open(act())


def test_whoever_learns_is_told_what_is_asked(gate):
    seen = []
    gate(Says(), learn=seen.append).open(act("fs.read.v1"))
    assert [asked.capability["name"] for asked in seen] == ["fs.read.v1"]


def test_no_value_of_an_environment_gets_into_the_log(gate, kept):
    """Whatever the policy quotes: it is told the names alone, and its reasons are searched."""
    policy = Says(Decision(True, ("because of t0psecret and 0thersecret",), bundle=DIGEST))
    place = Place.new(SandboxSpec(env={"B": "0thersecret"}))
    made = gate(policy).open(act(parameters={"env": {"A": "t0psecret"}}, place=place))
    with pytest.raises(PolicyDenied), made.obliging():
        raise PolicyDenied("t0psecret is too much")
    policy.decision = Decision(False, undecided="0thersecret is odd")
    with pytest.raises(Undecided):
        gate(policy).open(act(parameters={"env": {"A": "t0psecret"}}, place=place))
    raw = kept.raw()
    assert b"t0psecret" not in raw and b"0thersecret" not in raw and b"because of" in raw


def test_nobody_hides_a_decision_by_calling_it_a_secret(gate, kept):
    words = ("bundle", "reasons", "obligations", "level", "limits", DIGEST, "alice", "req-1")
    env = {f"V{number}": word for number, word in enumerate(words)}
    gate(allowing(no_network=True)).open(act(parameters={"env": env}))
    (record,) = kept.records()
    assert set(record.fields) == {"bundle", "reasons", "obligations"}
    assert record.fields["bundle"] == DIGEST
    assert set(record.fields["obligations"]) >= {"level", "limits", "no_network"}
    assert (record.principal, record.request) == ("alice", "req-1")


@pytest.mark.parametrize("env", [None, "text", ["a"], {"A": 1}, {"A": ""}])
def test_secrets_of_odd_environments_are_none(env):
    assert secrets(act(parameters={"env": env})) == []


def test_the_log_stays_one_record_a_line_whatever_the_principal_says(gate, kept):
    hostile = 'a\n{"seq":1}\r\x1b[2J\x00\u2028'
    with pytest.raises(PolicyDenied):
        gate(Says(Decision(False, (hostile,)))).open(act(hostile, request=hostile))
    lines = kept.raw().splitlines()
    assert len(lines) == 2  # with the one of its opening
    # What JSON would leave as it is, and some readers take for an end of a line, is written out.
    assert json.loads(lines[1])["capability"] == hostile.replace("\u2028", "\\u2028")
