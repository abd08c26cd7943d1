"""Threat: what was asked for runs although whoever asked has gone, or has thought better of it.

Control: an approval dies with its asker, with its sandbox, and when it is withdrawn; then nobody
can decide on it any more.
"""

import http.client
import json
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.security.daemons import Daemon, Later, running, until

POLICY = """
default decision := {"allow": true}

decision := {"allow": true, "obligations": {"approve": true}} if asked

asked if {
	some word in input.parameters.args
	contains(word, "ghost")
}
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running(policy=POLICY) as made:
        yield made


def _pending(daemon: Daemon) -> list[str]:
    found = daemon.ask("GET", "/v1/approvals").json
    return [view["id"] for view in found if view["state"] == "pending"]


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
    assert (answer.status, answer.code) == (410, "backend_lost")
    late = daemon.ask("POST", f"/v1/approvals/{asked}/decide", {"allow": True}, key=boss)
    assert (late.status, late.code) == (409, "conflict")
    assert late.json["cause"] == "its sandbox has ended"
