"""Calls over HTTP: to their end, and followed."""

import contextlib
import json
import os
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.ingest.fake import until
from tests.unit.ingest.harness import Running, read_all

from agentd.ingest.web.limits import WebLimits

WAIT = {"capability": "wait.v1"}
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


def test_the_request_is_handed_on_as_it_came(running: Running) -> None:
    """What was signed must not change on the way."""
    raw = b'{ "parameters":{"b":1, "a":2},\n"capability" : "echo.v1"}'
    for path in ("/v1/call", "/v1/call/stream"):
        assert running.ask("POST", path, raw, {"Content-Type": "application/json"}).status == 200
        assert running.service.seen["raw"] == raw


@pytest.mark.parametrize("path", ["/v1/call", "/v1/call/stream"])
class TestRefused:
    def test_whoever_is_not_known(self, running: Running, path: str) -> None:
        answer = running.ask("POST", path, ECHO, {"X-API-Key": "agd_nobody"})
        assert (answer.status, answer.code) == (401, "unauthenticated")
        assert running.ask("POST", path, ECHO, tcp=True).status == 401
        assert running.service.calls == []

    @pytest.mark.parametrize(
        "body",
        [
            {"capability": 7},
            {},
            {**ECHO, "unknown": 1},
            {**ECHO, "parameters": []},
            b"[" * 100_000,
            b"\xff",
            b'{"capability":"echo.v1"',
        ],
    )
    def test_what_is_no_request(self, running: Running, path: str, body: object) -> None:
        headers = {"Content-Type": "application/json"} if isinstance(body, bytes) else None
        answer = running.ask("POST", path, body, headers)
        assert (answer.status, answer.code) == (400, "invalid_input")
        assert running.service.calls == []

    def test_a_form_of_another_site_s_page(self, running: Running, path: str) -> None:
        answer = running.ask(
            "POST", path, json.dumps(ECHO).encode(), {"Content-Type": "text/plain"}
        )
        assert answer.status == 400 and running.service.calls == []

    def test_more_than_a_body_may_have(self, tmp_path: Path, path: str) -> None:
        with Running(tmp_path, WebLimits(body=1000)) as running:
            answer = running.ask("POST", path, {**ECHO, "parameters": {"x": "y" * 2000}})
            assert (answer.status, answer.code) == (413, "too_large")
            assert running.service.calls == []

    def test_one_that_there_is_no_room_for(self, tmp_path: Path, path: str) -> None:
        with Running(tmp_path, WebLimits(waits=1)) as running, follow(running, WAIT):
            running.service.waiting.wait(120)
            for _ in range(3):
                answer = running.ask("POST", path, ECHO)
                assert (answer.status, answer.code) == (429, "full")
                assert int(answer.headers["retry-after"]) >= 1


def test_whoever_may_not_run_is_told_so(running: Running) -> None:
    reader = {"X-API-Key": "agd_reader"}
    assert running.ask("POST", "/v1/call", ECHO, reader).code == "forbidden"
    ((name, data),) = events(running.ask("POST", "/v1/call/stream", ECHO, reader).body)
    assert (name, json.loads(data)["code"]) == ("error", "forbidden")


def test_what_nobody_foresaw_is_not_shown(running: Running) -> None:
    answer = running.ask("POST", "/v1/call", {"capability": "crash.v1"})
    assert (answer.status, answer.code) == (500, "internal") and b"secret" not in answer.body
    body = running.ask("POST", "/v1/call/stream", {"capability": "crash.v1"}).body
    ((name, data),) = events(body)
    assert (name, json.loads(data)["code"]) == ("error", "internal") and b"secret" not in body


@contextlib.contextmanager
def follow(running: Running, body: object) -> Iterator[socket.socket]:
    """A follower who has read the head of its answer, and no more."""
    raw = json.dumps(body).encode()
    head = (
        b"POST /v1/call/stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n"
    )
    with running.raw() as client:
        client.sendall(head % len(raw) + raw)
        assert client.recv(12) == b"HTTP/1.1 200"
        yield client


def endless(size: int) -> dict[str, object]:
    return {"capability": "endless.v1", "parameters": {"size": size}}


class TestFollower:
    def test_one_that_leaves_ends_a_call_that_waits(self, running: Running) -> None:
        with follow(running, WAIT):
            assert running.service.waiting.wait(120)
            assert running.service.cancelled == []
        until(lambda: running.service.cancelled == [True])

    def test_one_that_leaves_ends_a_call_that_sends(self, running: Running) -> None:
        with follow(running, endless(1000)):
            until(lambda: running.service.emitted > 0)
            assert running.service.cancelled == []
        until(lambda: len(running.service.cancelled) == 1)
        assert running.service.cancelled[0].code == "cancelled"  # type: ignore[attr-defined]

    @pytest.mark.parametrize("size", [1, 1000, 300_000])
    def test_a_slow_one_holds_the_call_up(self, running: Running, size: int) -> None:
        """What it does not take fills its socket, some of ours, and then a mebibyte."""
        with follow(running, endless(size)) as client:
            service = running.service
            until(lambda: _stands_still(lambda: service.emitted))
            held = service.emitted
            assert held * (size + 256) < 16 << 20
            assert service.cancelled == []
            taken = 0
            while taken < 8 << 20:
                taken += len(client.recv(1 << 20))
            until(lambda: service.emitted > held)

    def test_one_that_waits_hears_that_the_call_goes_on(self, tmp_path: Path) -> None:
        with (
            Running(tmp_path, WebLimits(heartbeat=0.05)) as running,
            follow(running, WAIT) as client,
        ):
            heard = b""
            while heard.count(b":\n\n") < 3:
                heard += client.recv(4096)
            assert running.service.cancelled == []

    def test_a_daemon_that_ends_ends_what_is_followed(self, running: Running) -> None:
        """Once its time to drain is over: until then it is the daemon's to end its command."""
        with follow(running, WAIT) as client:
            assert running.service.waiting.wait(120)
            running.begin_to_end(drain=0.2)
            rest = read_all(client)
        until(lambda: running.service.cancelled == [True])
        assert b"event: result" not in rest

    def test_nothing_is_open_after_many(self, running: Running) -> None:
        running.ask("POST", "/v1/call/stream", ECHO)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            running.ask("POST", "/v1/call/stream", ECHO)
            with follow(running, WAIT):
                pass
        until(lambda: len(running.service.cancelled) == 20)
        until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def _stands_still(count: Callable[[], int]) -> bool:
    before = count()
    time.sleep(0.5)
    return before > 0 and count() == before
