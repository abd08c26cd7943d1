"""Threat: an Idempotency-Key gives somebody what they may not have, or locks its owner out.

Control: a repeat is authorised as the request itself would be now, before it gets an answer; the
oldest keys that ended are forgotten for new ones; what is kept of answers is sealed.
"""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from tests.security.daemons import Answer, Daemon, Later, bundle, running, until

SMALL = """
[idempotency]
keys = 8
answers = "16K"
"""
POLICY = """
default decision := {"allow": true}

decision := {"allow": true, "obligations": {"approve": true}} if "ask" in input.parameters.args

decision := {"allow": false, "reasons": ["closed"]} if data.rules.closed
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running(SMALL) as made:
        yield made


def _exec(daemon: Daemon, box: str, key: str, of: str, *argv: str) -> Answer:
    path = f"/v1/sandboxes/{box}/exec"
    return daemon.ask("POST", path, {"cmd": argv or ("echo", "hi")}, key=of, Idempotency_Key=key)


def test_two_keys_of_one_request_are_none(daemon: Daemon) -> None:
    connection = daemon.connect()
    connection.putrequest("POST", "/v1/sandboxes")
    for name, value in (("Idempotency-Key", "a"), ("Idempotency-Key", "b"), ("Content-Length", 0)):
        connection.putheader(name, str(value))
    connection.endheaders()
    response = connection.getresponse()
    assert (response.status, json.load(response)["code"]) == (400, "invalid_input")
    connection.close()


def test_nobody_is_locked_out_by_their_own_past(daemon: Daemon) -> None:
    alice, bob = daemon.key("alice"), daemon.key("bob")
    theirs = daemon.sandbox(bob)
    assert _exec(daemon, theirs, "of-bob", bob).status == 200
    box = daemon.sandbox(alice)
    for number in range(30):
        assert _exec(daemon, box, f"e{number}", alice).status == 200
        made = daemon.ask("POST", "/v1/sandboxes", {}, key=alice, Idempotency_Key=f"c{number}")
        assert made.status == 201
        daemon.ask("DELETE", f"/v1/sandboxes/{made.json['id']}", key=alice)
    again = _exec(daemon, box, "e29", alice)
    assert again.headers["idempotency-replayed"] == "true"
    assert _exec(daemon, theirs, "of-bob", bob).headers["idempotency-replayed"] == "true"
    with closing(sqlite3.connect(f"file:{daemon.state}/store.db?mode=ro", uri=True)) as store:
        rows = dict(store.execute("SELECT principal, COUNT(*) FROM idempotency GROUP BY 1"))
        size = store.execute(
            "SELECT MAX(s) FROM (SELECT SUM(size) s FROM idempotency GROUP BY principal)"
        )
        assert rows["alice"] <= 8 and size.fetchone()[0] <= 16 << 10


def test_what_has_expired_is_forgotten_without_anybody_asking() -> None:
    with running('\n[idempotency]\nkeep = "1s"\n') as daemon:
        made = daemon.ask("POST", "/v1/sandboxes", {}, Idempotency_Key="short")
        assert made.status == 201
        assert _rows(daemon) == 1
        daemon.stop()
        daemon.start()  # retention looks at the start, and once a minute
        until(lambda: _rows(daemon) == 0)
        daemon.ask("DELETE", f"/v1/sandboxes/{made.json['id']}")


def _rows(daemon: Daemon) -> int:
    where = f"file:{daemon.state}/store.db?mode=ro"
    with closing(sqlite3.connect(where, uri=True)) as store:
        found: int = store.execute("SELECT COUNT(*) FROM idempotency").fetchone()[0]
        return found


def _requests(box: str) -> dict[str, tuple[str, str, Any]]:
    return {
        "exec": ("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "echo of-exec"}),
        "start": ("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "echo hi", "wait": False}),
        "run": ("POST", "/v1/run", {"sandbox": {}, "exec": {"cmd": "echo of-run"}}),
        "create": ("POST", "/v1/sandboxes", {"labels": {"a": "b"}}),
        "call": (
            "POST",
            "/v1/call",
            {"capability": "shell.exec.v1", "parameters": {"command": "id"}, "sandbox": box},
        ),
        "call in a new one": (
            "POST",
            "/v1/call",
            {"capability": "shell.exec.v1", "parameters": {"command": "id"}},
        ),
        "upload": ("PUT", f"/v1/sandboxes/{box}/files?path=/workspace/a", b"data"),
    }


@pytest.mark.parametrize("name", _requests(""))
def test_a_narrower_key_of_the_same_principal_gets_no_answer_by_repeating(
    daemon: Daemon, name: str
) -> None:
    alice, narrow = daemon.key("alice"), daemon.key("alice", "ports")
    box = daemon.sandbox(alice)
    method, path, body = _requests(box)[name]
    first = daemon.ask(method, path, body, key=alice, Idempotency_Key=name.replace(" ", "-"))
    assert first.status in (200, 201), first.body
    answers = [
        daemon.ask(method, path, body, key=key, Idempotency_Key=name.replace(" ", "-"))
        for key in (narrow, alice)
    ]
    assert (answers[0].status, answers[0].code) == (403, "forbidden"), answers[0].body
    assert answers[1].body == first.body
    assert answers[1].headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("run", [False, True])
def test_a_repeat_takes_the_scope_of_the_secrets_that_it_names(run: bool) -> None:
    with running('\n[egress]\nallow = ["example.org"]\n') as daemon:
        scopes = "run", "create", "egress"
        alice, narrow = daemon.key("alice", *scopes, "secrets"), daemon.key("alice", *scopes)
        value = {"value": "0123456789abcdef0123456789abcdef"}
        assert daemon.ask("PUT", "/v1/secrets/TOKEN", value, key=alice).status == 200
        own = {"name": "OWN", "hosts": ["example.org"], "value": value["value"]}
        for secrets, status in (([{"name": "TOKEN", "hosts": ["example.org"]}], 403), ([own], 200)):
            body: Any = {"net": ["example.org"], "secrets": secrets}
            where = "/v1/sandboxes"
            if run:
                where, body = "/v1/run", {"sandbox": body, "exec": {"cmd": "true"}}
            key = f"of-{status}"
            first = daemon.ask("POST", where, body, key=alice, Idempotency_Key=key)
            assert first.status in (200, 201), first.body
            again = daemon.ask("POST", where, body, key=narrow, Idempotency_Key=key)
            assert (again.status == 403) == (status == 403), again.body
            whole = daemon.ask("POST", where, body, key=alice, Idempotency_Key=key)
            assert whole.body == first.body


@pytest.mark.parametrize("name", ["exec", "call", "upload"])
def test_a_repeat_after_the_sandbox_has_gone_is_judged_by_what_is_known_of_it(
    daemon: Daemon, name: str
) -> None:
    alice, narrow = daemon.key("alice"), daemon.key("alice", "ports")
    box = daemon.sandbox(alice)
    method, path, body = _requests(box)[name]
    first = daemon.ask(method, path, body, key=alice, Idempotency_Key="gone-" + name)
    assert daemon.ask("DELETE", f"/v1/sandboxes/{box}", key=alice).status == 204
    again = daemon.ask(method, path, body, key=alice, Idempotency_Key="gone-" + name)
    assert again.body == first.body, again.body
    refused = daemon.ask(method, path, body, key=narrow, Idempotency_Key="gone-" + name)
    assert refused.status == 403


def test_the_policy_of_now_decides_on_a_repeat() -> None:
    with running(policy=POLICY) as daemon:
        alice, bob = daemon.key("alice"), daemon.key("bob", "approve", "read")
        folder = daemon.folder / "policy"
        _rules(daemon, closed=False)
        box = daemon.sandbox(alice)
        asked = {}
        for name, (method, path, body) in _requests(box).items():
            key = name.replace(" ", "-")
            asked[name] = (method, path, body, key)
            assert daemon.ask(method, path, body, key=alice, Idempotency_Key=key).status < 300
        # What somebody approved is not asked for again.
        later = Later(lambda: _exec(daemon, box, "approved", alice, "echo", "ask"))
        until(lambda: bool(_pending(daemon, bob)))
        path = f"/v1/approvals/{_pending(daemon, bob)[0]}/decide"
        assert daemon.ask("POST", path, {"allow": True}, key=bob).status == 200
        assert later.answer().status == 200
        again = _exec(daemon, box, "approved", alice, "echo", "ask")
        assert again.headers["idempotency-replayed"] == "true"

        _rules(daemon, closed=True)
        for method, path, body, key in asked.values():
            again = daemon.ask(method, path, body, key=alice, Idempotency_Key=key)
            assert (again.status, again.code) == (403, "policy_denied"), (path, again.body)
        shutil.rmtree(folder)


def _rules(daemon: Daemon, *, closed: bool) -> None:
    where = daemon.folder / "policy"
    bundle(daemon.folder, POLICY)
    (where / "data.json").write_text(json.dumps({"rules": {"closed": closed}}))
    manifest = {"name": "test", "modules": ["base.rego"], "data": ["data.json"]}
    (where / "manifest.json").write_text(json.dumps(manifest))
    for file in where.iterdir():
        file.chmod(0o644)
    before = daemon.log.count(b"the configuration is taken over")
    assert daemon.process is not None
    daemon.process.send_signal(1)
    until(lambda: daemon.log.count(b"the configuration is taken over") > before)


def _pending(daemon: Daemon, key: str) -> list[str]:
    found = daemon.ask("GET", "/v1/approvals", key=key).json
    return [view["id"] for view in found if view["state"] == "pending"]
