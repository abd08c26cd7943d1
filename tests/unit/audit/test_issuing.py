import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.audit.executions import execution

from agentd.audit import issuing, receipt
from agentd.audit.issuing import Behind
from agentd.audit.keypair import KeyPair
from agentd.audit.log import AuditLog
from agentd.audit.receipts import ReceiptStore


@pytest.fixture
def receipts(tmp_path: Path) -> Iterator[ReceiptStore]:
    made = ReceiptStore(str(tmp_path / "receipts"))
    yield made
    made.close()


def behind(receipts: ReceiptStore, key: KeyPair) -> Behind:
    """One that has nothing to look for in the log of a daemon before."""
    return Behind(receipts, key, "/nonexistent")


def ended(log: AuditLog, *names: str) -> list[receipt.ReceiptFacts]:
    return [receipt.chain(log, execution(request=name)) for name in names]


def test_they_come_by_themselves(log: AuditLog, key: KeyPair, receipts: ReceiptStore) -> None:
    issuer = behind(receipts, key)
    known = ended(log, *(f"req-{n}" for n in range(50)))
    for facts in known:
        issuer.keep(facts)
    issuer.close()
    assert [receipts.get(f.execution.request) for f in known] == [
        receipt.issue(f, key) for f in known
    ]


def test_who_asks_does_not_wait(
    log: AuditLog, key: KeyPair, receipts: ReceiptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuing, "DELAY_SECONDS", 3600.0)
    issuer = behind(receipts, key)
    asked, other = ended(log, "req-asked", "req-other")
    issuer.keep(asked)
    issuer.keep(other)
    assert receipts.get("req-asked") is None
    assert issuer.get("req-asked") == receipt.issue(asked, key)
    assert receipts.get("req-other") is None and issuer.get("req-nobody") is None
    issuer.close()
    issuer.close()
    assert receipts.get("req-other") is not None
    late = ended(log, "req-late")[0]
    issuer.keep(late)
    assert receipts.get("req-late") == receipt.issue(late, key)


def test_too_many_are_issued_at_once(
    log: AuditLog, key: KeyPair, receipts: ReceiptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuing, "DELAY_SECONDS", 3600.0)
    monkeypatch.setattr(issuing, "MAX_WAITING", 2)
    issuer = behind(receipts, key)
    for facts in ended(log, "req-a", "req-b", "req-c"):
        issuer.keep(facts)
    found = [receipts.get(name) is not None for name in ("req-a", "req-b", "req-c")]
    issuer.close()
    assert found == [False, False, True]


def test_none_is_lost_between_threads(
    log: AuditLog, key: KeyPair, receipts: ReceiptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuing, "DELAY_SECONDS", 0.0)
    issuer = behind(receipts, key)
    missing: list[str] = []

    def work(name: str) -> None:
        for number in range(40):
            (facts,) = ended(log, f"{name}-{number}")
            issuer.keep(facts)
            if issuer.get(f"{name}-{number}") is None:
                missing.append(f"{name}-{number}")

    threads = [threading.Thread(target=work, args=(f"req-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    issuer.close()
    assert missing == []


def test_what_a_killed_one_had_not_issued_is_issued_by_the_next(
    log: AuditLog, key: KeyPair, receipts: ReceiptStore
) -> None:
    known = ended(log, "req-a", "req-b", "req-c")
    receipts.put("req-b", receipt.issue(known[1], key))
    issuer = Behind(receipts, key, log.directory)
    issuer.close()
    assert [receipts.get(f.execution.request) for f in known] == [
        receipt.issue(f, key) for f in known
    ]
