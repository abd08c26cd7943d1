"""Calls by a daemon: what is sent, and what is made of its answers and events."""

import os
import time
from base64 import b64encode

import msgspec
import pytest
from tests.unit.client.http.conftest import DROP

from agentd.client.http import calls
from agentd.client.http.errors import Unreachable
from agentd.model.api import CallBody, CallView
from agentd.model.capability import CallFailed
from agentd.model.decision import Decision
from agentd.model.errors import AgentdError, BackendLost, PolicyDenied, Undecided
from agentd.model.result import Cause, CauseCode, Timing, Usage

BODY = CallBody("fs.read.v1", {"path": "a"}, "sbx-1", bundle="sha256:x")
VIEW = CallView(
    request_id="req-1",
    capability="fs.read.v1",
    status="ok",
    value={"content": "x"},
    cause=Cause.of(CauseCode.EXITED, "done"),
    decision=Decision(allow=True, reasons=("yes",), bundle="sha256:x"),
    usage=Usage(),
    timing=Timing(1.0, 2.0, 3.0),
    sandbox=None,
    enforcement={},
    receipt="req-1",
)
DONE = (200, {}, msgspec.json.encode(VIEW))
EVENTS = {"Content-Type": "text/event-stream", "Connection": "close"}


def event(name, data):
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def stream(*parts, status=200):
    return status, EVENTS, b"".join(parts)


def ignore(kind, data): ...


class TestToItsEnd:
    def test_the_request_and_its_answer(self, daemon, client):
        daemon.answers = [DONE]
        assert calls.call(client, BODY, None) == VIEW
        (request,) = daemon.requests
        assert (request.method, request.path) == ("POST", "/v1/call")
        sent = msgspec.json.decode(request.body)
        assert sent["capability"] == "fs.read.v1" and sent["parameters"] == {"path": "a"}
        assert (sent["sandbox"], sent["bundle"]) == ("sbx-1", "sha256:x")

    def test_it_is_done_once_however_often_it_is_sent(self, daemon, client):
        daemon.answers = [DROP, DROP, DONE]
        assert calls.call(client, BODY, None) == VIEW
        keys = {request.headers["Idempotency-Key"] for request in daemon.requests}
        assert len(daemon.requests) == 3 and len(keys) == 1 and None not in keys

    def test_what_is_signed_is_sent_as_it_is_and_not_again(self, daemon, client):
        """Its nonce would be used up, and what is added would not be signed."""
        signed = {"capability": "x.v1", "signature": {"key": "k"}, "parameters": {}}
        daemon.answers = [DROP, DONE]
        with pytest.raises(Unreachable):
            calls.call(client, msgspec.json.encode(signed), None)
        (request,) = daemon.requests
        assert msgspec.json.decode(request.body) == signed
        assert request.headers["Idempotency-Key"] is None

    @pytest.mark.parametrize(
        ("status", "code", "kind"),
        [
            (403, "policy_denied", PolicyDenied),
            (503, "policy_undecided", Undecided),
            (422, "no_match", CallFailed),
        ],
    )
    def test_a_refusal_is_its_error(self, daemon, client, status, code, kind):
        daemon.answers = [(status, {}, msgspec.json.encode({"code": code, "message": "no"}))]
        with pytest.raises(kind) as caught:
            calls.call(client, BODY, None)
        assert caught.value.code == code


class TestFollowed:
    def test_what_comes_before_the_end_is_told_in_order(self, daemon, client):
        pieces = [("stdout", b"one"), ("stderr", b"\x00\xff"), ("stdout", b"two")]
        sent = [event(name, b64encode(data)) for name, data in pieces]
        daemon.answers = [stream(b":\n\n", *sent, event("result", msgspec.json.encode(VIEW)))]
        seen = []
        assert calls.call(client, BODY, lambda *piece: seen.append(piece)) == VIEW
        assert seen == pieces
        (request,) = daemon.requests
        assert request.path == "/v1/call/stream"
        assert request.headers["Idempotency-Key"] is None

    def test_an_error_at_its_end(self, daemon, client):
        error = {"code": "no_match", "message": "no", "status": 422}
        daemon.answers = [stream(event("error", msgspec.json.encode(error)))]
        with pytest.raises(CallFailed) as caught:
            calls.call(client, BODY, ignore)
        assert caught.value.code == "no_match"

    def test_a_refusal_before_it_begins(self, daemon, client):
        body = msgspec.json.encode({"code": "full", "message": "no room"})
        daemon.answers = [stream(body, status=429)]
        with pytest.raises(AgentdError) as caught:
            calls.call(client, BODY, ignore)
        assert caught.value.code == "full"

    @pytest.mark.parametrize("sent", [(), (event("stdout", b64encode(b"x")),), (b"event: resu",)])
    def test_one_that_breaks_off_may_have_been_done(self, daemon, client, sent):
        daemon.answers = [stream(*sent)]
        with pytest.raises(BackendLost) as caught:
            calls.call(client, BODY, ignore)
        assert "look before you do it again" in caught.value.remediation
        assert len(daemon.requests) == 1

    @pytest.mark.parametrize(
        "sent",
        [
            event("result", b"{}"),
            event("result", b"not JSON"),
            event("error", b"[]"),
            event("stdout", b"not base64!"),
        ],
    )
    def test_what_is_no_daemons_answer_is_an_error_of_ours(self, daemon, client, sent):
        daemon.answers = [stream(sent)]
        with pytest.raises(AgentdError, match="not what it should be"):
            calls.call(client, BODY, ignore)

    def test_a_result_as_large_as_a_call_may_have(self, daemon, client):
        large = msgspec.structs.replace(VIEW, value={"content": "x" * (16 << 20)})
        daemon.answers = [stream(event("result", msgspec.json.encode(large)))]
        assert calls.call(client, BODY, ignore) == large

    def test_what_emit_raises_comes_out_and_leaves_the_call(self, daemon, client):
        left = []

        def goes_on(handler):
            handler.send_response(200)
            handler.end_headers()
            try:
                while True:
                    handler.wfile.write(event("stdout", b64encode(b"x" * 1000)))
            except OSError as error:
                left.append(error)
            handler.close_connection = True

        def full(kind, data):
            raise ZeroDivisionError

        daemon.answers = [goes_on]
        with pytest.raises(ZeroDivisionError):
            calls.call(client, BODY, full)
        client.close()
        until(lambda: bool(left))

    def test_whoever_gives_up_leaves_the_call(self, daemon, client):
        ours, theirs = os.pipe()
        left = []

        def stands_still(handler):
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.flush()
            os.close(theirs)
            left.append(handler.rfile.read(1))
            handler.close_connection = True

        daemon.answers = [stands_still]
        with pytest.raises(BackendLost, match="left before its end"):
            calls.call(client, BODY, None, ours)
        client.close()
        os.close(ours)
        until(lambda: left == [b""])


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
