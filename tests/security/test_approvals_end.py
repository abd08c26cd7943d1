"""Threat: what was asked for runs although whoever asked has gone, or has thought better of it.

Control: an approval dies with its asker, with its sandbox, and when it is withdrawn; then nobody
can decide on it any more. Nobody is refused one for what they asked before, and while one is waited
for others go on.
"""

import http.client
import json
import resource
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest
from tests.security.daemons import Daemon, Later, running, until

from agentd.daemon.admission.approvals import MAX_KEPT_OF_ONE
from agentd.daemon.store.records import ApprovalRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.daemon.store.view import Transaction

POLICY = """
default decision := {"allow": true}

decision := {"allow": true, "obligations": {"approve": true}} if asked

asked if input.sandbox.labels.slow

asked if {
	some word in input.parameters.args
	contains(word, "ghost")
}
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running(policy=POLICY) as made:
        yield made


def test_nobody_is_locked_out_by_what_they_asked_before() -> None:
    with running(policy=POLICY) as daemon:
        alice = daemon.key("alice")
        box = daemon.sandbox(alice)
        daemon.stop()
        store, now = SqliteStore(str(daemon.state)), time.time()
        for number in range(MAX_KEPT_OF_ONE):
            past = ApprovalRecord(
                id=f"apr-{int(now * 1000) - MAX_KEPT_OF_ONE + number:012x}{number:012x}",
                principal="alice",
                request="",
                asked={},
                state="denied",
                created=now - MAX_KEPT_OF_ONE + number,
                expires=now + 600,
            )
            store.submit(partial(_put, record=past), urgent=False)
        store.close()
        daemon.start()
        path = f"/v1/sandboxes/{box}/exec"
        later = Later(lambda: daemon.ask("POST", path, {"cmd": ["echo", "ghost"]}, key=alice))
        until(lambda: bool(_pending(daemon)) or later.is_over)
        assert not later.is_over, later.answer().body
        decide = f"/v1/approvals/{_pending(daemon)[0]}/decide"
        assert daemon.ask("POST", decide, {"allow": True}).status == 200
        assert later.answer().status == 200
        with closing(sqlite3.connect(f"file:{daemon.state}/store.db?mode=ro", uri=True)) as rows:
            assert rows.execute("SELECT COUNT(*) FROM approvals").fetchone() == (MAX_KEPT_OF_ONE,)


def test_what_nobody_could_read_is_too_large(daemon: Daemon) -> None:
    alice = daemon.key("alice")
    path = f"/v1/sandboxes/{daemon.sandbox(alice)}/exec"
    refused = daemon.ask("POST", path, {"cmd": ["echo", "ghost", *["x" * 8192] * 8]}, key=alice)
    assert (refused.status, refused.code) == (413, "too_large"), refused.body
    assert not _pending(daemon)


def _put(transaction: Transaction, record: ApprovalRecord) -> None:
    transaction.put(record)


def _pending(daemon: Daemon) -> list[str]:
    found = daemon.ask("GET", "/v1/approvals").json
    return [view["id"] for view in found if view["state"] == "pending"]


def test_labels_that_wait_for_an_approval_hold_up_nobodys(daemon: Daemon) -> None:
    alice, bob = daemon.key("alice"), daemon.key("bob")
    his, hers = (f"/v1/sandboxes/{daemon.sandbox(who)}" for who in (bob, alice))
    later = Later(lambda: daemon.ask("PATCH", his, {"labels": {"slow": "1"}}, key=bob))
    waiting = _one_pending(daemon)
    assert daemon.ask("PATCH", hers, {"labels": {"a": "1"}}, key=alice).status == 200
    # What its owner changes meanwhile is not lost: it is judged anew with that.
    assert daemon.ask("PATCH", his, {"labels": {"b": "2"}}, key=bob).status == 200
    assert not later.is_over
    for _ in range(2):
        path = f"/v1/approvals/{waiting}/decide"
        assert daemon.ask("POST", path, {"allow": True}).status == 200
        until(lambda: later.is_over or bool(_pending(daemon)))
        waiting = "".join(_pending(daemon))
    assert later.answer().json["labels"] == {"slow": "1", "b": "2"}


def _one_pending(daemon: Daemon) -> str:
    until(lambda: bool(_pending(daemon)))
    return _pending(daemon)[0]


def _asks(box: str) -> dict[str, tuple[str, object, str]]:
    """Path, body and Idempotency-Key of requests that would make a file."""
    path, cmd = f"/v1/sandboxes/{box}/exec", "touch /workspace/ghost"
    parameters = {"command": "sh", "args": ["-c", cmd]}
    call = {"capability": "shell.exec.v1", "parameters": parameters, "sandbox": box}
    return {
        "exec": (path, {"cmd": cmd}, ""),
        "started": (path, {"cmd": cmd, "wait": False}, ""),
        "keyed": (path, {"cmd": cmd}, "k"),
        "call": ("/v1/call", call, ""),
        "stream": ("/v1/call/stream", call, ""),
    }


@pytest.mark.parametrize("name", _asks(""))
def test_a_request_whose_client_hangs_up_is_withdrawn_and_never_runs(
    daemon: Daemon, name: str
) -> None:
    alice, boss = daemon.key("alice"), daemon.key("boss", "approve", "read")
    box = daemon.sandbox(alice)
    path, body, key = _asks(box)[name]
    connection: http.client.HTTPConnection = daemon.connect()
    headers = {"X-API-Key": alice, "Content-Type": "application/json"}
    headers |= {"Idempotency-Key": key + box} if key else {}
    with closing(connection):
        connection.request("POST", path, json.dumps(body), headers)
        asked = _one_pending(daemon)
    until(lambda: daemon.ask("GET", f"/v1/approvals/{asked}").json["state"] == "withdrawn")
    late = daemon.ask("POST", f"/v1/approvals/{asked}/decide", {"allow": True}, key=boss)
    assert (late.status, late.code) == (409, "conflict")
    assert "is withdrawn" in late.json["message"]
    denial = daemon.until_recorded(kind="denial", sandbox=box)
    assert "whoever asked has gone" in str(denial.fields)
    assert daemon.ask("GET", f"/v1/sandboxes/{box}/files?path=/workspace/ghost").status == 404
    daemon.ask("DELETE", f"/v1/sandboxes/{box}")


def test_one_can_withdraw_ones_own_request_and_no_others(daemon: Daemon) -> None:
    alice, bob = daemon.key("alice"), daemon.key("bob")
    boss = daemon.key("boss", "approve", "read")
    box = daemon.sandbox(alice)
    path, body, _ = _asks(box)["exec"]
    for withdraw in ("http", "cli"):
        later = Later(lambda: daemon.ask("POST", path, body, key=alice))
        asked = _one_pending(daemon)
        where = f"/v1/approvals/{asked}/withdraw"
        assert daemon.ask("POST", where, key=bob).status == 404
        assert daemon.ask("POST", where, key=boss).status == 403
        if withdraw == "http":
            assert daemon.ask("POST", where, key=alice).json["state"] == "withdrawn"
        else:
            done = daemon.cli("approval", "withdraw", asked, key=alice)
            assert done.stdout == f"{asked} withdrawn\n".encode(), done.stderr
        answer = later.answer()
        assert (answer.status, answer.code) == (403, "approval_withdrawn")
        assert daemon.ask("POST", where, key=alice).json["state"] == "withdrawn"
        late = daemon.ask("POST", f"/v1/approvals/{asked}/decide", {"allow": True}, key=boss)
        assert (late.status, late.code) == (409, "conflict")
    assert daemon.ask("GET", f"/v1/sandboxes/{box}/files?path=/workspace/ghost").status == 404
    daemon.ask("DELETE", f"/v1/sandboxes/{box}")


@pytest.mark.parametrize("name", ["exec", "call"])
def test_with_its_sandbox_ends_what_waits_for_approval(daemon: Daemon, name: str) -> None:
    alice, boss = daemon.key("alice"), daemon.key("boss", "approve", "read")
    box = daemon.sandbox(alice)
    path, body, _ = _asks(box)[name]
    later = Later(lambda: daemon.ask("POST", path, body, key=alice))
    asked = _one_pending(daemon)
    assert daemon.ask("DELETE", f"/v1/sandboxes/{box}", key=alice).status == 204
    answer = later.answer()
    assert (answer.status, answer.code) == (410, "cancelled")
    late = daemon.ask("POST", f"/v1/approvals/{asked}/decide", {"allow": True}, key=boss)
    assert (late.status, late.code) == (409, "conflict")
    assert late.json["cause"] == "its sandbox has ended"


def test_a_request_ends_with_its_sandbox_also_where_that_cannot_be_noted() -> None:
    with running(policy=POLICY) as daemon:
        box = daemon.sandbox()
        asked = {"cmd": ["echo", "ghost"]}
        waits = Later(lambda: daemon.ask("POST", f"/v1/sandboxes/{box}/exec", asked))
        until(lambda: bool(daemon.ask("GET", "/v1/approvals").json))
        assert daemon.process is not None
        pid, of_files = daemon.process.pid, resource.RLIMIT_FSIZE
        soft, hard = resource.prlimit(pid, of_files)
        resource.prlimit(pid, of_files, (1, hard))  # its disk is full
        try:
            daemon.ask("DELETE", f"/v1/sandboxes/{box}")
            answer = waits.answer()
        finally:
            resource.prlimit(pid, of_files, (soft, hard))
        assert answer.status >= 400 and answer.code, answer.body
        until(lambda: daemon.ask("GET", "/readyz").status == 200)
        (left,) = daemon.ask("GET", "/v1/approvals").json
        assert left["state"] in ("expired", "withdrawn"), left
        decided = daemon.ask("POST", f"/v1/approvals/{left['id']}/decide", {"allow": True})
        assert decided.status in (403, 409), decided.body
