"""An end that is acknowledged is in the log, and its receipt holds without the daemon."""

import os

import pytest
from tests.unit.daemon.admission.test_executions import admitted, result
from tests.unit.daemon.known import act, handle_of

from agentd.audit.errors import AuditError
from agentd.audit.receipt import facts_of, issue, verify
from agentd.audit.verify import verify as verify_log
from agentd.daemon.admission.acts import Place
from agentd.daemon.admission.admission import Admission
from agentd.daemon.admission.gate import ran
from agentd.daemon.admission.records import digest
from agentd.model.decision import Decision
from agentd.model.errors import NotFound
from agentd.model.result import Cause, CauseCode
from agentd.model.spec import SandboxSpec


@pytest.fixture
def ending(records):
    return admitted(ran(handle_of()), records)


def test_the_receipt_chains_to_the_record_that_was_written_before_it(ending, records, key, kept):
    id_ = ending.end(result(), {"stdout": digest(b"out")})
    assert id_ == ending.act.request == "req-1"
    said = verify(records.get(id_), key.public_pem())
    assert said.predicate.execution.exit_code == 3
    assert [(s.name, s.digest["sha256"]) for s in said.subject] == [
        ("stdout", digest(b"out").removeprefix("sha256:"))
    ]
    (record,) = kept.records()
    assert record.position == said.predicate.record
    assert verify_log(kept.folder, said.predicate.record).ok


def test_a_receipt_that_is_lost_is_issued_again_from_the_log(ending, records, key, kept):
    id_ = ending.end(result(), {})
    (record,) = kept.records()
    assert issue(facts_of(record), key) == records.get(id_)


def test_one_that_cannot_be_kept_is_no_error(ending, records, receipts, kept, tmp_path):
    receipts.close()
    os.rename(tmp_path / "receipts", tmp_path / "gone")
    (tmp_path / "receipts").write_text("in the way")
    assert ending.end(result(), {}) == "req-1"
    assert kept.kinds() == ["end"]


def test_an_end_that_cannot_be_written_is_told(ending, kept):
    kept.log.close()
    with pytest.raises(AuditError):
        ending.end(result(), {})
    # Whoever is told of the failure itself is told that.
    ending.fail(NotFound("gone"))


@pytest.mark.parametrize(
    ("error", "code"), [(None, CauseCode.CANCELLED), (NotFound("no"), CauseCode.FAILED)]
)
def test_what_came_to_nothing_has_an_end_too(ending, kept, error, code):
    ending.fail(error)
    (record,) = kept.records()
    assert (record.kind, record.fields["cause"]["code"]) == ("end", code)


def test_no_value_of_an_environment_is_in_a_record_or_receipt(records, kept):
    place = Place.new(SandboxSpec(env={"B": "0thersecret"}))
    asked = act(parameters={"command": "x", "env": {"A": "t0psecret"}}, place=place)
    decision = Decision(True, ("t0psecret is known",))
    cause = Cause.of(CauseCode.SPAWN_FAILED, "0thersecret: not found")
    made = Admission(records, asked, decision, 1.0, ran(handle_of()))
    raw = records.get(made.end(result(cause=cause), {})) + kept.raw()
    from agentd.audit.dsse import payload_of

    raw += payload_of(records.get("req-1"))
    assert b"t0psecret" not in raw and b"0thersecret" not in raw
    assert b"is known" in raw and b": not found" in raw


def test_there_is_none_of_an_unknown_id(records):
    assert records.get("req-2") is None
    assert records.get("../../etc/passwd") is None
