"""Streams that go on for hours are still the caller's, or end with the reason, by each kind."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.ingest.fake import KEYS
from tests.unit.ingest.harness import Running
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import unix_connect
from websockets.sync.server import serve

from agentd.ingest.web.limits import WebLimits
from agentd.model.principal import SCOPES, Principal

KEY = "agd_gone"
ALICE = Principal("alice", frozenset(SCOPES) - {"admin"}, "key")
EVENTS = "Accept: text/event-stream\r\n"


class Place:
    """A sandbox of the caller's with a command that waits."""

    def __init__(self, running: Running) -> None:
        self.running = running
        mine = {"X-API-Key": KEY}
        self.id = running.ask("POST", "/v1/sandboxes", {}, mine).json["id"]
        body = {"cmd": ["wait"], "wait": False}
        at = f"/v1/sandboxes/{self.id}"
        self.process = running.ask("POST", f"{at}/exec", body, mine).json["id"]
        self.at = at


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setitem(KEYS, KEY, ALICE)
    with Running(tmp_path, WebLimits(reauthorise=0.05, heartbeat=0.02)) as running:
        yield Place(running)


@contextlib.contextmanager
def read(
    place: Place, path: str, accept: str = EVENTS, first: bytes = b""
) -> Iterator[Callable[[], bytes]]:
    """Once its answer has begun, and ``first`` of its body is there: what comes until it ends."""
    with place.running.raw() as client:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{accept}X-API-Key: {KEY}\r\n\r\n"
        client.sendall(head.encode())
        begun = b""
        while b"\r\n\r\n" not in begun or first not in begun:
            begun += client.recv(4096)
        assert begun.startswith(b"HTTP/1.1 200"), begun

        def rest() -> bytes:
            parts = [begun]
            with contextlib.suppress(ConnectionResetError):
                # Its last chunk, or the end of the connection.
                while not parts[-1].endswith(b"0\r\n\r\n") and (part := client.recv(4096)):
                    parts.append(part)
            return b"".join(parts)

        yield rest


@contextlib.contextmanager
def socket_to(place: Place, path: str, first: str = "") -> Iterator[Callable[[], list[Any]]]:
    headers = {"X-API-Key": KEY}
    url = f"ws://localhost{path}"
    with unix_connect(place.running.path, url, additional_headers=headers) as client:
        if first:
            client.send(first)

        def rest() -> list[Any]:
            heard: list[Any] = []
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    heard.append(client.recv(120))
            assert closed.value.rcvd is not None
            return [*heard, closed.value.rcvd.code]

        yield rest


@contextlib.contextmanager
def inside(answer: bytes) -> Iterator[int]:
    """A server that answers each with that, and no more."""
    held = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    held[-1].recv(4096)
                    held[-1].sendall(answer)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in held:
                connection.close()


def revoked(place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delitem(KEYS, KEY)
    return "unauthenticated"


def without_scopes(place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(KEYS, KEY, Principal("alice", frozenset(), "key"))
    return "forbidden"


def anothers(place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    place.running.service.sandboxes[place.id].owner = "bob"
    return "not_found"


Ended = Callable[[Place, pytest.MonkeyPatch], str]
every_end = pytest.mark.parametrize("end", [revoked, without_scopes, anothers])


def last(heard: bytes) -> str:
    """The code of the error that is the last event."""
    found = heard.rpartition(b"event: error\ndata: ")[2].partition(b"\n")[0]
    told = json.loads(found)
    assert set(told) == {"code", "message", "cause", "remediation", "status"}
    assert told["status"] in (401, 403, 404)
    code: str = told["code"]
    return code


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        *[
            (kind, end)
            for kind in ("output", "watch")
            for end in (revoked, without_scopes, anothers)
        ],
        *[("events", end) for end in (revoked, without_scopes)],
    ],
)
def test_events_end_with_the_reason(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: str, end: Ended
) -> None:
    path = {
        "output": f"{place.at}/processes/{place.process}/output",
        "watch": f"{place.at}/files/watch?path=/etc/motd",
        "events": "/v1/events",
    }[kind]
    with read(place, path) as rest:
        code = end(place, monkeypatch)
        assert last(rest()) == code


@every_end
def test_raw_output_is_cut_off(place: Place, monkeypatch: pytest.MonkeyPatch, end: Ended) -> None:
    at = f"{place.at}/processes/{place.process}"
    service = place.running.service
    service.sandboxes[place.id].processes[place.process].write("stdout", b"first")
    with read(place, f"{at}/output?stream=stdout&follow=true", "") as rest:
        end(place, monkeypatch)
        assert not rest().endswith(b"0\r\n\r\n"), "it ended as if that were all"


@every_end
@pytest.mark.parametrize("kind", ["attach", "exec"])
def test_a_session_is_closed_with_the_reason(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: str, end: Ended
) -> None:
    attach = f"{place.at}/processes/{place.process}/attach"
    path, first = (attach, "") if kind == "attach" else (f"{place.at}/exec", '{"cmd": ["wait"]}')
    with socket_to(place, path, first) as rest:
        # It has begun: only then is it known to be followed.
        code = end(place, monkeypatch) if kind == "attach" else _begun(place, end, monkeypatch)
        *_, error, closed = rest()
    assert json.loads(error)["error"]["code"] == code
    assert closed == 1008


def _begun(place: Place, end: Ended, monkeypatch: pytest.MonkeyPatch) -> str:
    there = place.running.service.sandboxes[place.id].processes
    while len(there) < 2:
        threading.Event().wait(0.01)
    return end(place, monkeypatch)


@every_end
def test_an_answer_from_a_port_is_cut_off(
    place: Place, monkeypatch: pytest.MonkeyPatch, end: Ended
) -> None:
    with (
        inside(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome") as port,
        read(place, f"{place.at}/ports/{port}/", "", b"some") as rest,
    ):
        end(place, monkeypatch)
        assert rest().endswith(b"some")


@every_end
def test_a_websocket_to_a_port_is_closed(
    place: Place, monkeypatch: pytest.MonkeyPatch, end: Ended
) -> None:
    with serve(lambda connection: connection.recv(), "127.0.0.1", 0) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            port = server.socket.getsockname()[1]
            with socket_to(place, f"{place.at}/ports/{port}/") as rest:
                code = end(place, monkeypatch)
                error, closed = rest()
        finally:
            server.shutdown()
            serving.join()
    assert json.loads(error)["error"]["code"] == code
    assert closed == 1008


def test_who_still_may_is_not_disturbed(place: Place) -> None:
    with read(place, "/v1/events") as rest:
        looks = 0
        whole = place.running.service._who

        def counted(credential: Any) -> Principal:
            nonlocal looks
            looks += 1
            if looks > 5:
                done.set()
            return whole(credential)

        done = threading.Event()
        place.running.service._who = counted  # type: ignore[method-assign]
        assert done.wait(120)
        place.running.begin_to_end()
        assert b"event: error" not in rest()
