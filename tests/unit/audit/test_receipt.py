import json
from pathlib import Path

import pytest
from tests.unit.audit.executions import DIGEST, execution

from agentd.audit import dsse, receipt
from agentd.audit.errors import AuditError, ReceiptInvalid
from agentd.audit.keypair import KeyPair
from agentd.audit.log import AuditLog
from agentd.audit.read import records
from agentd.audit.receipt import MAX_HOSTS, Decided
from agentd.audit.receipts import ReceiptStore
from agentd.audit.reissue import reissue, reissue_newest
from agentd.audit.shared import SharedLog
from agentd.audit.verify import verify
from agentd.model.audit import Event, Kind
from agentd.model.enforcement import Control
from agentd.model.errors import InvalidInput
from agentd.model.redact import HIDDEN
from agentd.model.result import Cause, CauseCode, NetworkUsage, Usage


def test_a_receipt_says_what_was_done_and_where_it_is_recorded(log: AuditLog, key: KeyPair) -> None:
    facts = receipt.chain(log, execution())
    statement = receipt.verify(receipt.issue(facts, key), key.public_pem())
    assert statement.predicate == facts and statement.predicate.execution == execution()
    assert statement.predicate.record == log.head
    assert {(each.name, each.digest["sha256"]) for each in statement.subject} == {
        ("stdout", "ab" * 32),
        ("stderr", "ab" * 32),
    }
    assert verify(log.directory, statement.predicate.record).ok


def test_it_is_an_in_toto_statement(log: AuditLog, key: KeyPair) -> None:
    found = json.loads(
        dsse.payload_of(receipt.issue(receipt.chain(log, execution()), key)).decode()
    )
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == receipt.PREDICATE_TYPE
    assert set(found) == {"_type", "subject", "predicateType", "predicate"}


def test_everything_in_it_stands_in_the_log(log: AuditLog, key: KeyPair) -> None:
    facts = receipt.chain(log, execution(), ["the default bundle"])
    opened, end = records(log.directory)
    assert receipt.facts_of(end) == facts
    # Ed25519 is deterministic: it is the very same receipt.
    assert receipt.issue(receipt.facts_of(end), key) == receipt.issue(facts, key)
    with pytest.raises(AuditError, match="no execution's end"):
        receipt.facts_of(opened)


def test_secrets_are_in_neither(log: AuditLog, key: KeyPair) -> None:
    told = execution(
        decision=Decided(True, DIGEST, ("because of hunter2",)),
        cause=Cause(CauseCode.SPAWN_FAILED, "no program hunter2"),
        enforcement={"mount /hunter2": Control("ro", True, "/hunter2")},
        outputs={"hunter2.txt": DIGEST},
    )
    facts = receipt.chain(log, told, ["hunter2"])
    envelope = receipt.issue(facts, key)
    assert b"hunter2" not in dsse.payload_of(envelope)
    assert all("hunter2" not in str(record) for record in records(log.directory))
    assert facts.execution.decision.reasons == (f"because of {HIDDEN}",)


def test_nobody_hides_what_they_did_by_calling_it_secret(log: AuditLog, key: KeyPair) -> None:
    told = execution()
    facts = receipt.chain(log, told, ["uid:1000", DIGEST, "exited", "namespace", "12.5", "0"])
    assert facts.execution.principal == "uid:1000" and facts.execution.code_digest == DIGEST
    assert facts.execution.cause.code is CauseCode.EXITED
    assert receipt.facts_of(list(records(log.directory))[1]) == facts


def test_the_longest_execution_fits_into_a_record(log: AuditLog) -> None:
    long = "\x00" * 5000
    controls = {f"{i}{long}": Control(long, False, long) for i in range(100)}
    outputs = {f"{i}{long}": DIGEST for i in range(100)}
    told = execution(
        decision=Decided(False, DIGEST, (long,) * 100),
        cause=Cause(CauseCode.EXITED, long, long),
        enforcement=controls,
        outputs=outputs,
    )
    facts = receipt.chain(log, told)
    assert receipt.facts_of(list(records(log.directory))[1]) == facts
    assert len(facts.execution.enforcement) == 32
    assert not any(control.enforced for control in facts.execution.enforcement.values())


def test_what_is_no_digest_is_refused(log: AuditLog) -> None:
    with pytest.raises(InvalidInput, match="no digest"):
        receipt.chain(log, execution(outputs={"stdout": "ab" * 32}))
    assert len(list(records(log.directory))) == 1


def test_a_statement_of_another_kind_is_refused(key: KeyPair, log: AuditLog) -> None:
    found = json.loads(dsse.payload_of(receipt.issue(receipt.chain(log, execution()), key)))
    for name in ("_type", "predicateType"):
        other = json.dumps(found | {name: "https://example.com/other"}).encode()
        with pytest.raises(ReceiptInvalid, match="of another type"):
            receipt.verify(dsse.sign(other, key), key.public)
    with pytest.raises(ReceiptInvalid, match="cannot be read"):
        receipt.verify(dsse.sign(b"{}", key), key.public)


def test_lost_receipts_are_issued_again(log: AuditLog, key: KeyPair, tmp_path: Path) -> None:
    receipts = ReceiptStore(str(tmp_path / "receipts"))
    issued = {}
    for name in ("req-a", "req-b"):
        issued[name] = receipt.issue(receipt.chain(log, execution(request=name)), key)
    log.append(Event(kind=Kind.END, request="req-c"))  # told too little
    receipts.put("req-a", issued["req-a"])
    assert reissue(log.directory, receipts, key) == 1
    assert {name: receipts.get(name) for name in issued} == issued
    assert receipts.get("req-c") is None and reissue(log.directory, receipts, key) == 0
    receipts.close()


def test_the_newest_that_are_there_end_the_search(
    log: AuditLog, key: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.audit.reissue._ENOUGH", 2)
    receipts = ReceiptStore(str(tmp_path / "receipts"))
    for name in ("req-a", "req-b", "req-c", "req-d"):
        issued = receipt.issue(receipt.chain(log, execution(request=name)), key)
        if name in ("req-b", "req-d"):
            receipts.put(name, issued)
        log.append(Event(kind=Kind.START))
    assert reissue_newest(log.directory, receipts, key) == 2
    assert reissue_newest(log.directory, receipts, key) == 0
    receipts.close()


def test_a_shared_log_will_do(tmp_path: Path, key: KeyPair) -> None:
    log = SharedLog(str(tmp_path / "shared"))
    facts = receipt.chain(log, execution())
    log.close()
    assert receipt.peek(receipt.issue(facts, key)).predicate == facts


def test_hosts_that_were_connected_to_are_bounded_and_hide_secrets(
    log: AuditLog, key: KeyPair
) -> None:
    hosts = {f"n{number}.example.com": number for number in range(100)}
    hosts |= {"hunter2.example.com": 500, "x" * 200: 400}
    told = execution(usage=Usage(network=NetworkUsage(allowed=1, hosts=hosts)))
    facts = receipt.chain(log, told, ["hunter2"])
    found = facts.execution.usage.network
    assert isinstance(found, NetworkUsage)
    assert len(found.hosts) == MAX_HOSTS and found.allowed == 1
    assert not any("hunter2" in name or len(name) > 96 for name in found.hosts)
    assert found.hosts["n99.example.com"] == 99
    _, end = records(log.directory)
    assert receipt.issue(receipt.facts_of(end), key) == receipt.issue(facts, key)


def test_what_is_too_long_is_cut_behind_a_word_and_shows_it(log: AuditLog) -> None:
    said, path = " ".join(["sandboxes"] * 40), "/" + "x" * 700
    told = execution(
        cause=Cause(CauseCode.SPAWN_FAILED, f"no {path}", said * 2),
        enforcement={"shared": Control("default", True, said), "pids": Control("", True, "64 x")},
    )
    found = receipt.chain(log, told).execution
    assert found.enforcement["shared"].detail == " ".join(["sandboxes"] * 18) + "..."
    assert found.enforcement["pids"].detail == "64 x"
    assert found.cause.message == f"no {path}"[:509] + "..."
    assert found.cause.remediation.endswith(" sandboxes...")
