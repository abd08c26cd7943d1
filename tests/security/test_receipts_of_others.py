"""Threat: a principal learns from receipts what others do, or passes off a receipt as another.

Control: a receipt is its principal's, and does not exist for others; it is signed, and chained to
the record that the audit log holds.
"""

import json
from base64 import b64decode, b64encode
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, fixture

daemon = fixture()


@pytest.fixture(scope="module")
def receipt(daemon: Daemon) -> tuple[str, bytes]:
    """One of alice's: its id, and the envelope."""
    alice = daemon.key("alice")
    view = daemon.call("shell.exec.v1", {"command": "echo", "args": ["mine"]}, key=alice).json
    found = daemon.ask("GET", f"/v1/receipts/{view['receipt']}", key=alice)
    assert found.status == 200
    assert found.headers["content-type"] == "application/vnd.dsse.envelope.v1+json"
    return view["receipt"], found.body


def test_for_others_it_does_not_exist(daemon: Daemon, receipt: tuple[str, bytes]) -> None:
    id_, _ = receipt
    answers = [
        daemon.ask("GET", f"/v1/receipts/{name}", key=daemon.key("mallory"))
        for name in (id_, "req-0000000000000000")
    ]
    assert [a.code for a in answers] == ["not_found", "not_found"]
    told = [
        a.body.replace(name.encode(), b"ID")
        for a, name in zip(answers, (id_, "req-0000000000000000"), strict=True)
    ]
    assert told[0] == told[1]  # not to be told from one that never was


@pytest.mark.parametrize("scopes", [("read",), ("admin",)])
def test_for_an_admin_and_for_another_key_of_its_own_it_does(
    daemon: Daemon, receipt: tuple[str, bytes], scopes: tuple[str, ...]
) -> None:
    id_, envelope = receipt
    who = "alice" if scopes == ("read",) else "boss"
    found = daemon.ask("GET", f"/v1/receipts/{id_}", key=daemon.key(who, *scopes))
    assert found.body == envelope


def test_whoever_may_read_nothing_reads_none(daemon: Daemon, receipt: tuple[str, bytes]) -> None:
    key = daemon.key("alice", "run")
    for path in (f"/v1/receipts/{receipt[0]}", "/v1/receipt-key", "/v1/capabilities"):
        assert daemon.ask("GET", path, key=key).code == "forbidden"


def test_no_name_leads_out_of_the_receipts(daemon: Daemon) -> None:
    for name in ("..%2f..%2freceipt.key", "%2e%2e", "receipts-000000000001.jsonl", "%00", "a%0ab"):
        answer = daemon.ask("GET", f"/v1/receipts/{name}")
        assert answer.status in (400, 404) and b"PRIVATE" not in answer.body


def _with(envelope: bytes, old: bytes, new: bytes) -> bytes:
    found = json.loads(envelope)
    payload = b64decode(found["payload"])
    assert old in payload
    found["payload"] = b64encode(payload.replace(old, new, 1)).decode()
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"alice"', b'"bob"'),
        (b'"exit_code":0', b'"exit_code":1'),
        (b'"allow":true', b'"allow":false'),
        (b'"enforced":true', b'"enforced":false'),
        (b'"seq":', b'"seq":1'),
        (b"shell.exec.v1", b"fs.read.v1"),
    ],
)
def test_nothing_of_it_can_be_changed(
    daemon: Daemon, receipt: tuple[str, bytes], tmp_path: Path, old: bytes, new: bytes
) -> None:
    key = json.loads(daemon.ask("GET", "/v1/receipt-key").body)
    (tmp_path / "key.pem").write_text(key)
    for envelope, code in ((receipt[1], 0), (_with(receipt[1], old, new), 1)):
        (tmp_path / "receipt.json").write_bytes(envelope)
        words = ("receipt", "verify", f"{tmp_path}/receipt.json", "--key", f"{tmp_path}/key.pem")
        done = daemon.cli(*words)
        assert (done.returncode == 0) is (code == 0), done.stderr


def test_a_log_that_was_rewritten_is_shown_up_by_it(
    daemon: Daemon, receipt: tuple[str, bytes], tmp_path: Path
) -> None:
    """Whoever may write the log can chain it anew, and not the receipts that others hold."""
    from agentd.audit import read
    from agentd.audit.receipt import peek
    from agentd.audit.record import GENESIS, seal
    from agentd.audit.verify import verify

    head = peek(receipt[1]).predicate.record
    assert verify(daemon.audit, head).ok
    prev, lines = GENESIS, []
    for seq, line in enumerate(read.lines(daemon.audit), 1):
        body = line.split(b",", 2)[2].rsplit(b',"hash":', 1)[0].replace(b"alice", b"ecila")
        made, prev = seal(seq, prev, body)
        lines.append(made)
    (tmp_path / "audit-00000000000000000001.jsonl").write_bytes(b"".join(lines))
    assert verify(str(tmp_path)).ok
    assert not verify(str(tmp_path), head).ok
