"""Ordinary requests, each error's status, and what is asked once only."""

import contextlib
import json
import os
import threading
from typing import Any

import pytest
from tests.unit.ingest.fake import KEYS, until
from tests.unit.ingest.fake_service import FakeService
from tests.unit.ingest.harness import ALICE, BOB, Reply, Running

from agentd.audit.errors import AuditBusy, AuditError
from agentd.auth import signing
from agentd.daemon.admission.parked import ApprovalDenied, ApprovalExpired
from agentd.ingest.rest.api import error_answer
from agentd.ingest.rest.operation import recordable
from agentd.ingest.web.status import status_of
from agentd.model import errors
from agentd.model.answer import Answer
from agentd.model.api import ApprovalView
from agentd.model.capability import CallFailed
from agentd.model.credential import Credential


def test_a_sandbox_from_its_creation_to_its_end(running: Running) -> None:
    made = running.ask("POST", "/v1/sandboxes", {"labels": {"a": "b"}})
    assert made.status == 201
    id_ = made.json["id"]
    assert running.ask("GET", f"/v1/sandboxes/{id_}").json == made.json
    page = running.ask("GET", "/v1/sandboxes?label=a%3Db&limit=1")
    assert [s["id"] for s in page.json["sandboxes"]] == [id_]
    assert running.ask("GET", "/v1/sandboxes?label=a%3Dc").json["sandboxes"] == []
    assert running.ask("POST", f"/v1/sandboxes/{id_}/pause").json["state"] == "paused"
    refused = running.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": ["echo"]})
    assert (refused.status, refused.code) == (409, "conflict")
    assert running.ask("POST", f"/v1/sandboxes/{id_}/resume").json["state"] == "ready"
    ended = running.ask("DELETE", f"/v1/sandboxes/{id_}")
    assert (ended.status, ended.body) == (204, b"")
    assert running.ask("GET", f"/v1/sandboxes/{id_}").code == "not_found"


def test_an_end_that_takes_no_time_is_answered_before_the_rest_of_it(running: Running) -> None:
    may, done = threading.Event(), threading.Event()
    running.service.rest = lambda: (may.wait(120) and done.set()) or None
    connection = running.connect()
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("DELETE", f"/v1/sandboxes/{running.sandbox()}")
            answer = Reply(connection.getresponse())
            assert (answer.status, answer.body) == (204, b"")
            assert not done.is_set()
    may.set()
    assert done.wait(120)


@pytest.mark.parametrize("error", [errors.SandboxError("it does not end"), RuntimeError("a bug")])
def test_whatever_the_rest_comes_to_its_connection_goes_on(
    running: Running, error: Exception
) -> None:
    tried = threading.Event()

    def rest() -> None:
        tried.set()
        raise error

    running.service.rest = rest
    connection = running.connect()
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("DELETE", f"/v1/sandboxes/{running.sandbox()}")
            assert Reply(connection.getresponse()).status == 204
            assert tried.wait(120)
            tried.clear()


def test_an_end_that_a_key_allows_takes_no_longer(running: Running) -> None:
    done = threading.Event()
    running.service.rest = done.set
    id_ = running.ask("POST", "/v1/sandboxes", {}, ALICE).json["id"]
    assert running.ask("DELETE", f"/v1/sandboxes/{id_}", headers=BOB).status == 404
    assert running.ask("DELETE", f"/v1/sandboxes/{id_}", headers=ALICE).status == 204
    assert done.wait(120)
    id_ = running.sandbox()
    assert running.ask("DELETE", f"/v1/sandboxes/{id_}", b"{}").status == 400, "it takes no body"
    assert id_ in running.service.sandboxes


def test_exec_gives_the_result_or_with_wait_false_the_process(running: Running) -> None:
    id_ = running.sandbox()
    done = running.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": ["echo", "hi"]})
    assert (done.status, done.json["stdout"], done.json["status"]) == (200, "hi\n", "ok")
    started = running.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": ["wait"], "wait": False})
    assert (started.status, started.json["state"]) == (201, "running")
    place = f"/v1/sandboxes/{id_}/processes"
    assert len(running.ask("GET", place).json) == 2
    one = f"{place}/{started.json['id']}"
    assert running.ask("POST", f"{one}/resize", {"rows": 3, "cols": 4}).status == 204
    assert running.ask("POST", f"{one}/signal").status == 204
    assert running.ask("GET", one).json["state"] == "ended"
    process = running.service.sandboxes[id_].processes[started.json["id"]]
    assert (process.signals, process.sizes_seen) == ([(15, "group")], [(3, 4)])


def test_a_kill_is_done_though_its_client_goes_before_it_is_known_who_that_was(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a client that has given up a daemon which hung meanwhile: a token takes a thread."""
    id_ = running.ask("POST", "/v1/sandboxes", {}, ALICE).json["id"]
    asked = {"cmd": ["wait"], "wait": False}
    name = running.ask("POST", f"/v1/sandboxes/{id_}/exec", asked, ALICE).json["id"]
    judged, looks_on = threading.Event(), threading.Event()

    def authenticate(credential: Credential) -> FakeService:
        judged.set()
        assert looks_on.wait(120)
        return FakeService(running.service, KEYS["agd_alice"])

    monkeypatch.setattr(running.service, "authenticate", authenticate)
    body = b'{"signal": 9}'
    with running.raw() as client:
        client.sendall(
            f"POST /v1/sandboxes/{id_}/processes/{name}/signal HTTP/1.1\r\nHost: x\r\n"
            "Authorization: Bearer a.b.c\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert judged.wait(120)
    until(lambda: running.server.connections == 0)
    looks_on.set()
    until(lambda: running.service.sandboxes[id_].processes[name].signals == [(9, "group")])


def test_run_is_a_sandbox_for_one_command(running: Running) -> None:
    done = running.ask("POST", "/v1/run", {"exec": {"cmd": ["echo", "x"]}})
    assert (done.status, done.json["stdout"]) == (200, "x\n")
    assert running.service.sandboxes == {}


def test_snapshots_forks_changes_and_keys(running: Running) -> None:
    id_ = running.sandbox()
    kept = running.ask("POST", f"/v1/sandboxes/{id_}/snapshot")
    assert kept.status == 201
    assert [s["id"] for s in running.ask("GET", "/v1/snapshots").json] == [kept.json["id"]]
    assert running.ask("DELETE", f"/v1/snapshots/{kept.json['id']}").status == 204
    forked = running.ask("POST", f"/v1/sandboxes/{id_}/fork", {"count": 2})
    assert (forked.status, len(forked.json)) == (201, 2)
    assert running.ask("GET", f"/v1/sandboxes/{id_}/changes").json == ["/etc/motd"]
    assert running.ask("POST", f"/v1/sandboxes/{id_}/apply").status == 204
    assert running.ask("POST", f"/v1/sandboxes/{id_}/renew", {"ttl": "10m"}).status == 200
    key = running.ask("POST", "/v1/keys", {"name": "ci", "scopes": ["read"]})
    assert (key.status, key.json["secret"]) == (201, "agd_secret")
    assert running.ask("GET", "/v1/keys").json[0]["secret"] is None
    assert running.ask("DELETE", f"/v1/keys/{key.json['id']}").status == 204


def test_approvals(running: Running) -> None:
    waiting = ApprovalView("apr-1", "pending", "alice", "req-1", {"cmd": "rm"}, 1.0, 9.0)
    running.service.asked["apr-1"] = waiting
    (shown,) = running.ask("GET", "/v1/approvals").json
    assert (shown["state"], shown["asked"]) == ("pending", {"cmd": "rm"})
    assert running.ask("GET", "/v1/approvals/apr-1").json == shown
    assert running.ask("GET", "/v1/approvals/apr-2").status == 404
    path = "/v1/approvals/apr-1/decide"
    assert running.ask("POST", path, {"note": "no word of it"}).status == 400
    assert running.ask("POST", path, {"allow": "yes"}).status == 400
    done = running.ask("POST", path, {"allow": True, "note": "fine"}, BOB)
    assert (done.status, done.json["state"], done.json["decided_by"]) == (200, "approved", "bob")
    assert running.ask("POST", path, {"allow": False}).status == 409


def test_what_is_anothers_does_not_exist(running: Running) -> None:
    id_ = running.ask("POST", "/v1/sandboxes", {}, ALICE).json["id"]
    assert running.ask("GET", f"/v1/sandboxes/{id_}", headers=BOB).status == 404
    assert running.ask("GET", f"/v1/sandboxes/{id_}").status == 404
    assert running.ask("GET", f"/v1/sandboxes/{id_}", headers=ALICE).status == 200


def test_the_unix_socket_says_who_asks_and_tcp_does_not(running: Running) -> None:
    assert running.ask("GET", "/v1/version").status == 200
    refused = running.ask("GET", "/v1/version", tcp=True)
    assert (refused.status, refused.code) == (401, "unauthenticated")
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert running.ask("GET", "/v1/version", headers=ALICE, tcp=True).status == 200
    bearer = {"Authorization": "Bearer agd_alice"}
    assert running.ask("GET", "/v1/version", headers=bearer, tcp=True).status == 200


def test_only_credentials_are_shown_to_who_authenticates(running: Running) -> None:
    running.ask("GET", "/v1/version", headers={**ALICE, "Cookie": "c", "X-Other": "o"})
    seen = running.service.seen["credential"]
    assert seen == Credential(peer_pid=os.getpid(), peer_uid=os.getuid(), api_key="agd_alice")


def test_only_what_has_a_signature_is_verified_in_a_thread(running: Running) -> None:
    """A key or a peer is looked up in memory; a thread and back would cost more than that."""
    token = {"Authorization": "Bearer aGVhZA.Y2xhaW1z.c2lnbmF0dXJl"}
    bearer = {"Authorization": "Bearer agd_alice"}
    in_a_thread = []
    for headers in ({}, ALICE, bearer, token):
        running.ask("GET", "/v1/sandboxes", headers=headers)
        in_a_thread.append(running.service.seen["thread"] != running.thread)
    assert in_a_thread == [False, False, False, True]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("GET", "/v1/nothing", None, {}, 404, "not_found"),
        ("GET", "/v1/sandboxes/", None, {}, 404, "not_found"),
        ("GET", "/healthz%0A", None, {}, 404, "not_found"),
        ("PATCH", "/v1/sandboxes", None, {}, 405, "method_not_allowed"),
        ("POST", "/v1/sandboxes", {"unknown": 1}, {}, 400, "invalid_input"),
        ("POST", "/v1/sandboxes", b"{", {"Content-Type": "application/json"}, 400, "invalid_input"),
        ("POST", "/v1/sandboxes", b"{}", {"Content-Type": "text/plain"}, 400, "invalid_input"),
        ("POST", "/v1/run", None, {}, 400, "invalid_input"),
        ("GET", "/v1/sandboxes?limit=1_0", None, {}, 400, "invalid_input"),
        ("GET", "/v1/sandboxes?limit=1&limit=2", None, {}, 400, "invalid_input"),
        ("GET", "/v1/sandboxes?nope=1", None, {}, 400, "invalid_input"),
        ("GET", "/v1/sandboxes?cursor=%ff", None, {}, 400, "invalid_input"),
        ("GET", "/v1/sandboxes", None, {"X-API-Key": "agd_no"}, 401, "unauthenticated"),
        ("GET", "/v1/sandboxes", None, {"X-API-Key": "agd_hasty"}, 429, "quota_exceeded"),
        ("POST", "/v1/sandboxes", {}, {"X-API-Key": "agd_reader"}, 403, "forbidden"),
        ("GET", "/v1/sandboxes", None, {"Origin": "https://evil.example"}, 403, "forbidden"),
        ("GET", "/v1/sandboxes", None, {"Origin": "null"}, 403, "forbidden"),
    ],
)
def test_refusals(
    running: Running,
    method: str,
    path: str,
    body: Any,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    reply = running.ask(method, path, body, headers)
    assert (reply.status, reply.code) == (status, code)
    if status == 405:
        assert reply.headers["allow"] == "GET, HEAD, POST"
    if status == 429:
        assert reply.headers["retry-after"] == "3"


def test_after_dns_rebinding_a_page_is_refused(running: Running) -> None:
    """Insecure TCP: the browser believes that evil.example is this server."""
    from agentd.model.principal import local

    running.service.anyone = local("anyone")
    evil = {"Host": "evil.example:1", "Origin": "http://evil.example:1"}
    assert running.ask("POST", "/v1/run", {}, evil, tcp=True).status == 403
    assert running.ask("GET", "/v1/version", None, {"Host": "evil.example"}, tcp=True).status == 403
    for good in ("localhost:80", "127.0.0.1", "[::1]:80"):
        assert running.ask("GET", "/v1/version", None, {"Host": good}, tcp=True).status == 200


def test_an_unforeseen_error_tells_nothing_of_the_daemon(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    id_ = running.sandbox()
    reply = running.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": ["crash"]})
    assert (reply.status, reply.code) == (500, "internal")
    assert b"secret" not in reply.body
    assert "a secret of the daemon" in caplog.text


def test_a_key_does_a_request_once(running: Running) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = running.ask("POST", "/v1/sandboxes", {}, headers)
    again = running.ask("POST", "/v1/sandboxes", {}, headers)
    assert first.json == again.json
    assert (first.headers["idempotency-replayed"], again.headers["idempotency-replayed"]) == (
        None,
        "true",
    )
    assert running.service.calls == ["create"]
    other = running.ask("POST", "/v1/sandboxes", {"image": "other"}, headers)
    assert (other.status, other.code) == (422, "idempotency_mismatch")
    # A key is its principal's own.
    assert running.ask("POST", "/v1/sandboxes", {}, {**ALICE, **headers}).json != first.json


def test_a_repeat_while_it_runs_waits_for_the_same_answer(running: Running) -> None:
    id_ = running.sandbox()
    replies = []

    def ask() -> None:
        headers = {"Idempotency-Key": "k2"}
        replies.append(running.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": ["wait"]}, headers))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    processes = running.service.sandboxes[id_].processes
    until(lambda: len(processes) == 1 and len(running.service.keyed) == 1)
    next(iter(processes.values())).end()
    for thread in threads:
        thread.join()
    assert replies[0].body == replies[1].body
    assert running.service.calls.count("exec") == 1


def test_an_error_by_which_nothing_was_done_frees_the_key(running: Running) -> None:
    headers = {"Idempotency-Key": "k3"}
    assert running.ask("POST", "/v1/run", {"nope": 1}, headers).status == 400
    assert running.ask("POST", "/v1/run", {"exec": {"cmd": ["echo"]}}, headers).status == 200


def test_a_recorded_error_is_given_again(running: Running) -> None:
    headers = {"Idempotency-Key": "k4"}
    path = "/v1/sandboxes/none/exec"
    first = running.ask("POST", path, {"cmd": ["echo"]}, headers)
    again = running.ask("POST", path, {"cmd": ["echo"]}, headers)
    assert (first.status, again.status, first.body) == (404, 404, again.body)
    assert again.headers["idempotency-replayed"] == "true"


def test_a_large_body_is_read_only_for_somebody(running: Running) -> None:
    big = json.dumps({"exec": {"cmd": ["echo"], "stdin": "x" * 100_000}}).encode()
    headers = {"Content-Type": "application/json"}
    assert running.ask("POST", "/v1/run", big, headers, tcp=True).status == 401
    assert running.ask("POST", "/v1/run", big, {**headers, **ALICE}, tcp=True).status == 200


def test_health_readiness_and_the_document(running: Running) -> None:
    assert running.ask("GET", "/healthz", tcp=True).body == b"ok\n"
    assert running.ask("GET", "/readyz", tcp=True).status == 200
    running.service.not_ready = "the supervisor is away"
    reply = running.ask("GET", "/readyz", tcp=True)
    assert (reply.status, reply.json["message"]) == (503, "the supervisor is away")
    assert running.ask("GET", "/metrics", tcp=True).status == 404
    assert running.ask("GET", "/v1/stats").json["sandboxes"] == 0
    assert running.ask("GET", "/v1/backends").json[0]["name"] == "fake"


def test_every_error_of_the_model_has_a_status() -> None:
    kinds: list[type[errors.AgentdError]] = [errors.AgentdError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    for kind in {k for k in kinds if k.__module__ == errors.__name__}:
        assert 400 <= status_of(kind("x")) <= 599
    assert error_answer(errors.Full("x", retry_after=0.2)).headers["retry-after"] == "1"
    assert status_of(errors.OperationFailed("x", errno=28)) == 507
    assert status_of(errors.OperationFailed("x", errno=17)) == 409
    assert status_of(errors.BackendLost("x")) == 410


def test_an_unknown_code_has_the_status_of_its_kind() -> None:
    class Odd(errors.Refused):
        code = "odd"

    assert status_of(Odd("x")) == 403


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.PolicyDenied("x"), 403),
        (errors.Undecided("x"), 503),
        (ApprovalDenied("x"), 403),
        (ApprovalExpired("x"), 403),
        (AuditError("x"), 503),
        (AuditBusy("x"), 503),
        (signing.SignatureMissing("x"), 401),
        (signing.NonceReplayed("x"), 401),
        (CallFailed("not_found", "x"), 404),
        (CallFailed("too_large", "x"), 413),
        (CallFailed("no_match", "x"), 422),
        (CallFailed("busy", "x"), 422),
    ],
)
def test_what_policy_audit_signatures_and_capabilities_answer(
    error: errors.AgentdError, status: int
) -> None:
    assert status_of(error) == status


def test_every_refusal_of_a_signature_is_a_401() -> None:
    for kind in vars(signing).values():
        if isinstance(kind, type) and issubclass(kind, errors.Unauthenticated):
            assert status_of(kind("x")) == 401


def test_an_undecided_question_is_not_worth_asking_again() -> None:
    assert "retry-after" not in error_answer(errors.Undecided("x")).headers
    assert "retry-after" in error_answer(AuditBusy("x")).headers


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (CallFailed("no_match", "x"), 422),
        (errors.SandboxError("x"), 502),
        (errors.InvalidInput("x"), None),
        (errors.PolicyDenied("x"), None),
    ],
)
def test_a_repeat_runs_again_only_where_nothing_was_done(
    error: errors.AgentdError, recorded: int | None
) -> None:
    ask = recordable(lambda: _raise(error))
    if recorded is None:
        with pytest.raises(type(error)):
            ask()
    else:
        assert ask().status == recorded


def _raise(error: errors.AgentdError) -> Answer:
    raise error
