"""Output as events and as raw bytes; both ways over a WebSocket."""

import base64
import contextlib
import json
import struct
from collections.abc import Iterator
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest
from tests.unit.ingest.fake import FakeProcess, until
from tests.unit.ingest.fake_nouns import FakeCommands
from tests.unit.ingest.harness import ALICE, Running, sse
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect, unix_connect

from agentd.daemon.service.commands import FollowedOutput
from agentd.ingest.web.rooms import STREAM
from agentd.sandbox.journal.journal import Journal

EVENTS = {"Accept": "text/event-stream"}


def _found(running: Running, id_: str, process: str) -> FakeProcess:
    return running.service.sandboxes[id_].processes[process]


def _path(id_: str, process: str, rest: str = "output") -> str:
    return f"/v1/sandboxes/{id_}/processes/{process}/{rest}"


@contextlib.contextmanager
def _events(
    running: Running, path: str, headers: dict[str, str] | None = None
) -> Iterator[Iterator[dict[str, str]]]:
    with contextlib.closing(running.connect()) as connection:
        connection.request("GET", path, headers={**EVENTS, **(headers or {})})
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream"
        yield sse(response)


@contextlib.contextmanager
def _socket(running: Running, path: str) -> Iterator[ClientConnection]:
    with unix_connect(running.path, f"ws://localhost{path}") as socket:
        yield socket


def _data(message: str | bytes) -> tuple[int, int, bytes]:
    assert isinstance(message, bytes)
    stream, offset = struct.unpack(">BQ", message[:9])
    return stream, offset, message[9:]


def _event(message: str | bytes) -> Any:
    assert isinstance(message, str)
    return json.loads(message)


def test_events_as_they_come_then_the_exit(running: Running) -> None:
    id_, process = running.process("wait")
    found = _found(running, id_, process)
    found.write("stdout", b"a\xff")
    with _events(running, _path(id_, process)) as events:
        first = next(events)
        assert (first["event"], first["id"]) == ("stdout", "2:0")
        assert base64.b64decode(first["data"]) == b"a\xff"
        found.write("stderr", b"b")
        assert next(events)["id"] == "2:1"
        found.lose("stdout", 5)
        lost = next(events)
        assert (lost["id"], json.loads(lost["data"])) == (
            "7:1",
            {"stream": "stdout", "from": 2, "to": 7},
        )
        found.end(3)
        last = next(events)
        assert last["event"] == "exit"
        result = json.loads(last["data"])
        assert (result["exit_code"], result["stdout"]) == (3, "")
        assert list(events) == []


def test_last_event_id_goes_on_from_there(running: Running) -> None:
    id_, process = running.process("echo", "0123456789")
    with _events(running, _path(id_, process), {"Last-Event-ID": "4:0"}) as events:
        first = next(events)
        assert (base64.b64decode(first["data"]), first["id"]) == (b"456789\n", "11:0")
    for bad in ("x", "1", "1:2:3:4", "-1:0", "1:" + "9" * 30):
        reply = running.ask("GET", _path(id_, process), None, {**EVENTS, "Last-Event-ID": bad})
        assert reply.code == "invalid_input"


def test_a_terminals_cursor_is_the_third(running: Running) -> None:
    id_, process = running.process("wait")
    _found(running, id_, process).write("pty", b"prompt")
    with _events(running, _path(id_, process) + "?follow=false") as events:
        assert [e["id"] for e in events] == ["0:0:6"]
    with _events(running, _path(id_, process), {"Last-Event-ID": "0:0:3"}) as events:
        assert base64.b64decode(next(events)["data"]) == b"mpt"


def test_raw_bytes_of_one_stream(running: Running) -> None:
    id_, process = running.process("echo", "0123456789")
    path = _path(id_, process)
    assert running.ask("GET", path + "?stream=stdout").body == b"0123456789\n"
    reply = running.ask("GET", path + "?stream=stdout&from=4&follow=true")
    assert (reply.body, reply.headers["agentd-cursor"]) == (b"456789\n", "4")
    assert running.ask("GET", path + "?stream=stderr").body == b""
    for bad in ("", "?stream=nope", "?stream=stdout&from=-1", f"?stream=stdout&from={1 << 63}"):
        assert running.ask("GET", path + bad).code == "invalid_input"
    assert running.ask("GET", _path(id_, "none") + "?stream=stdout").status == 404


def test_raw_output_without_follow_ends_while_the_process_goes_on(running: Running) -> None:
    id_, process = running.process("wait")
    _found(running, id_, process).write("stdout", b"so far")
    assert running.ask("GET", _path(id_, process) + "?stream=stdout").body == b"so far"


def test_raw_output_that_lost_its_beginning_says_so(running: Running) -> None:
    id_, process = running.process("wait")
    found = _found(running, id_, process)
    found.lose("stdout", 100)
    found.write("stdout", b"rest")
    reply = running.ask("GET", _path(id_, process) + "?stream=stdout")
    assert reply.body == b"rest"
    assert (reply.headers["agentd-lost"], reply.headers["agentd-cursor"]) == ("0-100", "100")


def test_raw_output_that_lost_some_amid_it_has_what_is_before_and_behind(running: Running) -> None:
    id_, process = running.process("wait")
    found = _found(running, id_, process)
    found.write("stdout", b"start")
    found.lose("stdout", 100)
    found.write("stdout", b"rest")
    with contextlib.closing(running.connect()) as connection:
        connection.request("GET", _path(id_, process) + "?stream=stdout")
        with pytest.raises(IncompleteRead) as caught:
            connection.getresponse().read()
    assert caught.value.partial == b"start"
    reply = running.ask("GET", _path(id_, process) + "?stream=stdout&from=5")
    assert (reply.body, reply.headers["agentd-lost"]) == (b"rest", "5-105")


def test_raw_output_that_loses_more_meanwhile_is_cut_off(running: Running) -> None:
    """Nobody may take what came for all there was."""
    id_, process = running.process("wait")
    found = _found(running, id_, process)
    found.write("stdout", b"start")
    request = f"GET {_path(id_, process)}?stream=stdout&follow=true HTTP/1.1\r\nHost: x\r\n\r\n"
    with running.raw() as client:
        client.sendall(request.encode())
        got = b""
        while b"start" not in got:
            got += client.recv(1 << 16)
        found.lose("stdout", 5)
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(1 << 16):
                got += part
    assert not got.endswith(b"0\r\n\r\n")  # the last chunk of a whole body


def test_attach_both_ways(running: Running) -> None:
    id_, process = running.process("cat")
    with _socket(running, _path(id_, process, "attach")) as socket:
        started = _event(socket.recv())
        assert (started["event"], started["process"]["id"]) == ("started", process)
        socket.send(b"hello")
        assert _data(socket.recv()) == (1, 0, b"hello")
        socket.send(b"more")
        assert _data(socket.recv()) == (1, 5, b"more")
        socket.send(json.dumps({"op": "resize", "rows": 5, "cols": 6}))
        socket.send(json.dumps({"op": "eof"}))
        end = _event(socket.recv())
        assert (end["event"], end["result"]["exit_code"]) == ("exit", 0)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1000
    assert _found(running, id_, process).sizes_seen == [(5, 6)]


def test_attach_from_a_cursor_and_detach(running: Running) -> None:
    id_, process = running.process("wait")
    found = _found(running, id_, process)
    found.write("stdout", b"0123456789")
    found.lose("stderr", 4)
    with _socket(running, _path(id_, process, "attach?stdout=7&stderr=2")) as socket:
        socket.recv()
        assert _data(socket.recv()) == (1, 7, b"789")
        assert _event(socket.recv()) == {"event": "lost", "stream": "stderr", "from": 2, "to": 4}
    until(lambda: not found.followers)
    assert found.result is None  # it goes on


def test_a_process_that_does_not_read_can_be_signalled(running: Running) -> None:
    id_, process = running.process("deaf")
    with _socket(running, _path(id_, process, "attach")) as socket:
        socket.recv()
        socket.send(b"nobody reads this")
        socket.send(json.dumps({"op": "signal", "signal": 9, "target": "sandbox"}))
        assert _event(socket.recv())["event"] == "exit"
    assert _found(running, id_, process).signals == [(9, "sandbox")]


def test_exec_over_a_websocket(running: Running) -> None:
    id_ = running.sandbox()
    with _socket(running, f"/v1/sandboxes/{id_}/exec") as socket:
        socket.send(json.dumps({"cmd": ["echo", "hi"]}))
        assert _event(socket.recv())["event"] == "started"
        assert _data(socket.recv()) == (1, 0, b"hi\n")
        assert _event(socket.recv())["event"] == "exit"


def test_what_the_process_refuses_is_told_and_ends_nothing(running: Running) -> None:
    id_, process = running.process("cat")
    with _socket(running, _path(id_, process, "attach")) as socket:
        socket.recv()
        for bad in ("{", "[]", '{"op": "dance"}', '{"op": "signal", "signal": 99}', "\ud7ff"):
            socket.send(bad)
            error = _event(socket.recv())
            assert (error["event"], error["error"]["code"]) == ("error", "invalid_input")
        socket.send(b"still here")
        assert _data(socket.recv())[2] == b"still here"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/sandboxes/none/exec", {"X-API-Key": "agd_wrong"}, 401),
        ("/v1/sandboxes/none/processes/p/attach", {}, 404),
        ("/v1/sandboxes/none/processes/p/attach?stdout=x", {}, 400),
        ("/v1/sandboxes/none/exec", {"X-API-Key": "agd_reader"}, 403),
        ("/v1/sandboxes/none/exec", {"Origin": "https://evil.example"}, 403),
        ("/v1/none", {}, 404),
    ],
)
def test_a_websocket_that_is_not_accepted_is_answered_in_http(
    running: Running, path: str, headers: dict[str, str], status: int
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        unix_connect(running.path, f"ws://localhost{path}", additional_headers=headers)
    response = refused.value.response
    assert response.status_code == status
    assert set(json.loads(response.body or b"")) == {"code", "message", "cause", "remediation"}


def test_exec_refuses_what_is_no_exec_body(running: Running) -> None:
    id_ = running.sandbox()
    for first in ('{"nope": 1}', b"\xff\xff"):
        with _socket(running, f"/v1/sandboxes/{id_}/exec") as socket:
            socket.send(first)
            assert _event(socket.recv())["error"]["code"] == "invalid_input"
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv()
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008


def test_attach_over_tcp(running: Running) -> None:
    made = running.ask("POST", "/v1/sandboxes", {}, ALICE).json["id"]
    body = {"cmd": ["echo", "x"], "wait": False}
    process = running.ask("POST", f"/v1/sandboxes/{made}/exec", body, ALICE).json["id"]
    url = f"ws://127.0.0.1:{running.port}{_path(made, process, 'attach')}"
    with connect(url, additional_headers=ALICE) as socket:
        socket.recv()
        assert _data(socket.recv()) == (1, 0, b"x\n")


def test_stdin_over_http(running: Running) -> None:
    id_, process = running.process("cat")
    path = _path(id_, process, "stdin")
    assert running.ask("POST", path, b"one ").status == 204
    assert running.ask("POST", path + "?eof=true", b"two").status == 204
    assert running.ask("POST", path, b"late").status == 409
    assert running.ask("GET", _path(id_, process) + "?stream=stdout").body == b"one two"


def _chunks(answer: bytes) -> Iterator[bytes]:
    """The chunks of a body (RFC 9112, 7.1): each is what was written at once."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        yield rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


def test_output_in_single_bytes_is_sent_a_little_at_a_time(
    running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All of it at once kept the event loop from all others, and was more in memory than it counts
    as."""
    journal, pairs = Journal(str(tmp_path / "prc"), memory=1 << 16), 15_000
    for _ in range(pairs):
        journal.append("stdout", b"a")
        journal.append("stderr", b"b")
    journal.finish()

    def follow(_: object, __: str, ___: str, cursors: Any, notify: Any, streams: Any) -> Any:
        return FollowedOutput(journal.follow(cursors, streams=streams, notify=notify))

    id_, process = running.process("true")
    monkeypatch.setattr(FakeCommands, "follow", follow)
    head = f"GET {_path(id_, process)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    answer = running.say(f"{head}Accept: text/event-stream\r\n\r\n".encode())
    journal.close()
    written = list(_chunks(answer))
    assert b"".join(written).count(b"event: std") == 2 * pairs
    assert max(map(len, written)) < STREAM
