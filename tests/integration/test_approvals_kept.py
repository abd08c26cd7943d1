"""Approvals of as much as can be asked: how many are kept, and how they are read."""

import time
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.security.daemons import Daemon, Later, running, until

from agentd.daemon.admission import approvals
from agentd.daemon.store.records import ApprovalRecord
from agentd.daemon.store.sqlite import SqliteStore

POLICY = """
default decision := {"allow": true}

decision := {"allow": true, "obligations": {"approve": true}} if input.parameters.args
"""
_SIZE = 60_000


def _fill(state: Path, count: int) -> list[str]:
    """So many of alice's that have ended; return their ids."""
    store, now, ids = SqliteStore(str(state)), time.time(), []
    for number in range(count):
        past = ApprovalRecord(
            id=f"apr-{int((now - 600) * 1000) + number:012x}{number:012x}",
            principal="alice",
            request="",
            asked={"capability": "shell.exec.v1", "parameters": {"args": ["x" * _SIZE]}},
            state=("denied", "withdrawn", "expired")[number % 3],
            created=now - 600 + number / 1000,
            expires=now,
            decided=now,
            size=_SIZE,
        )
        store.write(lambda t, one=past: t.put(one), synced=False)  # type: ignore[misc]
        ids.append(past.id)
    store.close()
    return ids


def _walked(daemon: Daemon, key: str) -> list[str]:
    found: list[str] = []
    cursor, more = "", True
    while more:
        reply = daemon.ask("GET", f"/v1/approvals?cursor={quote(cursor)}", key=key)
        assert reply.status == 200 and len(reply.body) < 6 << 20
        found += [one["id"] for one in reply.json]
        more = "agentd-next" in reply.headers
        cursor = reply.headers.get("agentd-next", "")
    return found


def test_what_was_asked_at_length_is_read_in_pages_and_bounded() -> None:
    with running(policy=POLICY) as daemon:
        alice, other = daemon.key("alice"), daemon.key("other", "approve", "read")
        box = daemon.sandbox(alice)
        daemon.stop()
        past = _fill(daemon.state, 160)
        daemon.start()
        assert _walked(daemon, alice) == _walked(daemon, other) == past
        said = {"cmd": ["echo", "a"]}
        later = Later(lambda: daemon.ask("POST", f"/v1/sandboxes/{box}/exec", said, key=alice))
        first = "/v1/approvals?limit=1"
        until(lambda: daemon.ask("GET", first, key=other).json[0]["state"] == "pending")
        kept = _walked(daemon, alice)
        # What waits is the first; of what has ended the oldest have gone.
        assert kept[1:] == past[-len(kept) + 1 :]
        most = approvals.MAX_BYTES_OF_ONE // _SIZE
        assert len(kept) == 1 + max(most, len(past) - approvals._GO_FOR_ONE)
        done = daemon.ask("POST", f"/v1/approvals/{kept[0]}/decide", {"allow": True}, key=other)
        assert done.status == 200 and later.answer().json["stdout"] == "a\n"


@pytest.mark.parametrize("state", ["pending", "denied"])
def test_to_count_and_to_find_approvals_reads_none_of_what_was_asked(
    tmp_path: Path, state: str
) -> None:
    """Whoever had a thousand of 60 KB kept the store from everybody for seconds with each more."""
    tmp_path.chmod(0o700)
    store = SqliteStore(str(tmp_path))
    asked: list[str] = []
    rows = store._rows
    store._rows = lambda sql, values=(): asked.append(sql) or rows(sql, values)  # type: ignore
    store.measure(ApprovalRecord, "size", principal="alice")
    store.measure(ApprovalRecord, "size")
    store.least(ApprovalRecord, "created", 1, principal="alice", state=state)
    store.find(ApprovalRecord, after=("",), state=state, principal="alice")
    store.find(ApprovalRecord, after=("",), state=state)
    plans = [rows(f"EXPLAIN QUERY PLAN {sql}", ("",) * sql.count("?")) for sql in asked]
    store.close()
    told = [[row[-1] for row in plan] for plan in plans]
    assert all("COVERING INDEX" in plan[0] for plan in told[:2]), told
    assert all(len(plan) == 1 and plan[0].startswith("SEARCH") for plan in told[2:]), told
