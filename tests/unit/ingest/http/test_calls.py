"""Calls over HTTP: to their end, and followed."""

import json
from base64 import b64encode

import pytest
from tests.unit.ingest.http.harness import Running

ECHO = {"capability": "echo.v1", "parameters": {"n": 1}}
FAIL = {"capability": "fail.v1"}


def test_a_call_and_its_receipt(running: Running) -> None:
    answer = running.ask("POST", "/v1/call", ECHO)
    assert (answer.status, answer.json["value"]) == (200, {"n": 1})
    receipt = running.ask("GET", f"/v1/receipts/{answer.json['receipt']}")
    assert receipt.body == b'{"payload": ""}'
    assert running.ask("GET", "/v1/receipts/req-2").status == 404
    assert running.ask("GET", "/v1/receipt-key").json == "a key"
    names = [view["name"] for view in running.ask("GET", "/v1/capabilities").json]
    assert names == ["echo.v1", "odd.v1"]


def test_what_a_capability_ends_with_is_a_422(running: Running) -> None:
    answer = running.ask("POST", "/v1/call", FAIL)
    assert (answer.status, answer.code) == (422, "no_match")
    assert running.ask("POST", "/v1/call", {"capability": "none.v1"}).status == 404


def events(body: bytes) -> list[tuple[str, str]]:
    """As ``event: NAME`` and ``data: TEXT``, each."""
    found = [part.split("\n") for part in body.decode().split("\n\n") if part]
    return [(name.removeprefix("event: "), data.removeprefix("data: ")) for name, data in found]


def test_a_call_is_followed_to_its_result(running: Running) -> None:
    piece, last = events(running.ask("POST", "/v1/call/stream", ECHO).body)
    assert piece == ("stdout", b64encode(b"a piece").decode())
    assert last[0] == "result" and json.loads(last[1])["value"] == {"n": 1}


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [(FAIL, "no_match", 422), ({"capability": "x.v1"}, "not_found", 404)],
)
def test_the_last_event_says_which_status_it_would_have_been(
    running: Running, body: dict[str, str], code: str, status: int
) -> None:
    ((name, data),) = events(running.ask("POST", "/v1/call/stream", body).body)
    error = json.loads(data)
    assert (name, error["code"], error["status"]) == ("error", code, status)


def test_a_call_that_failed_has_run_and_does_not_run_again(running: Running) -> None:
    key = {"Idempotency-Key": "k"}
    first, second = (running.ask("POST", "/v1/call", FAIL, key) for _ in range(2))
    assert (first.status, second.status, second.body) == (422, 422, first.body)
    assert running.service.calls.count("call") == 1
