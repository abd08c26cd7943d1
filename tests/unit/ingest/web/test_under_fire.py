"""Clients that are slow, greedy, gone or malicious; each has its expected answer."""

import asyncio
import contextlib
import gc
import json
import os
import resource
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.ingest.fake import KEYS, FakeProcess, until
from tests.unit.ingest.fake_service import FakePorts, FakeService
from tests.unit.ingest.harness import ALICE, BOB, Running, read_all
from websockets.sync.client import unix_connect

from agentd.ingest.web.limits import WebLimits
from agentd.model.credential import Credential
from agentd.model.port import PortLink

QUICK = WebLimits(
    head_seconds=1.0, idle=1.0, body_seconds=1.0, stall=1.0, discard_seconds=1.0, first_message=1.0
)
GIB = 1 << 30


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def _process(running: Running, id_: str, process: str) -> FakeProcess:
    return running.service.sandboxes[id_].processes[process]


def _output(id_: str, process: str, accept: str = "*/*") -> bytes:
    path = f"/v1/sandboxes/{id_}/processes/{process}/output?stream=stdout&follow=true"
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode()


# --- greedy ---


@pytest.mark.parametrize("keyed", [False, True])
def test_no_callers_bodies_fill_the_memory(tmp_path: Path, keyed: bool) -> None:
    """Two callers; one sends bodies and no end of them. The other has room, and so has whatever is
    small; once they hang up, or are answered, there is room again."""
    mib = 1 << 20
    with Running(tmp_path, WebLimits(held=8 * mib, stranger=600.0)) as running:
        id_ = running.sandbox()
        upload = f"/v1/sandboxes/{id_}/files?path=/workspace/a&parents=true"
        method, path = ("PUT", upload) if keyed else ("POST", "/v1/run")
        more = "Idempotency-Key: k%d\r\n" if keyed else "X-Number: %d\r\n"
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: agd_bob\r\n{more}"
        head += f"Content-Type: application/json\r\nContent-Length: {mib}\r\n\r\n"
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(running.raw()) for _ in range(8)]
            for number, client in enumerate(clients):
                with contextlib.suppress(OSError):
                    client.sendall((head % number).encode() + bytes(mib - 1))
            said = [status(client.recv(1 << 16)) for client in clients[5:]]
            assert said == [429] * 3
            small = {"X-API-Key": "agd_bob"}
            assert running.ask("POST", "/v1/sandboxes", {"labels": {}}, small).status == 201
            large = {"labels": {}, "env": {"A": "x" * mib}}
            assert running.ask("POST", "/v1/sandboxes", large, small).status == 429
            other = {"X-API-Key": "agd_alice"}
            assert running.ask("POST", "/v1/sandboxes", large, other).status == 201
        for _ in range(10):
            until(lambda: running.ask("POST", "/v1/sandboxes", large, small).status == 201)


@pytest.mark.parametrize("reads", [False, True])
def test_no_callers_unread_answers_fill_the_memory(tmp_path: Path, reads: bool) -> None:
    """More is refused before it is done. There is room again once they are read, or given up."""
    mib = 1 << 20
    # Half of it, four answers: more than four bodies, however small the piece that comes last.
    with Running(tmp_path, WebLimits(held=8 * mib, stranger=600.0)) as running:
        small, other = {"X-API-Key": "agd_bob"}, {"X-API-Key": "agd_alice"}
        id_, alices = (
            running.ask("POST", "/v1/sandboxes", {}, whose).json["id"] for whose in (small, other)
        )
        body = json.dumps({"cmd": ["echo", "x" * mib]}).encode()
        path = f"/v1/sandboxes/{id_}/exec"
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: agd_bob\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        short = {"cmd": ["echo", "here"]}
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(running.raw()) for _ in range(8)]
            said = []
            for client in clients:
                client.sendall(head.encode() + body[:-1])
                client.sendall(body[-1:])
                said.append(status(client.recv(64)))
            assert said == [200] * 4 + [429] * 4
            assert running.service.calls.count("exec") == 4
            refused = running.ask("POST", path, short, small)
            assert (refused.status, refused.code) == (429, "full")
            assert "read the answers" in refused.json["remediation"]
            assert running.ask("GET", "/v1/sandboxes", headers=small).status == 200
            assert running.ask("POST", f"/v1/sandboxes/{alices}/exec", short, other).status == 200
            for client in clients if reads else ():
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 20):
                    pass
            if reads:
                until(lambda: running.ask("POST", path, short, small).status == 200)
        until(lambda: running.ask("POST", path, short, small).status == 200)


@pytest.mark.parametrize("what", ["bytes", "events", "attached", "feed", "call"])
def test_no_callers_streams_fill_the_memory(tmp_path: Path, what: str) -> None:
    """Each counts among the answers, whatever of it is read; one call that is followed as two."""
    with Running(tmp_path, WebLimits(held=1 << 20)) as running:
        id_, process = running.process("wait")
        path = f"/v1/sandboxes/{id_}/processes/{process}"
        body = json.dumps({"capability": "wait.v1", "parameters": {}, "sandbox": id_}).encode()
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        upgrade += "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        head = {
            "bytes": f"GET {path}/output?stream=stdout&follow=true HTTP/1.1\r\n",
            "events": f"GET {path}/output HTTP/1.1\r\nAccept: text/event-stream\r\n",
            "attached": f"GET {path}/attach HTTP/1.1\r\n{upgrade}",
            "feed": "GET /v1/events HTTP/1.1\r\nAccept: text/event-stream\r\n",
            "call": f"POST /v1/call/stream HTTP/1.1\r\nContent-Length: {len(body)}\r\n"
            "Content-Type: application/json\r\n",
        }[what]
        request = f"{head}Host: x\r\n\r\n".encode() + (body if what == "call" else b"")
        _process(running, id_, process).write("stdout", b"first")

        def asked(client: socket.socket) -> int:
            client.sendall(request)
            return status(client.recv(1 << 16))

        begun = 101 if what == "attached" else 200
        with contextlib.ExitStack() as stack:
            most = 1 if what == "call" else 2
            said = [asked(stack.enter_context(running.raw())) for _ in range(most + 1)]
            assert said == [begun] * most + [429]

        def is_begun() -> bool:
            with running.raw() as client:
                return asked(client) == begun

        until(is_begun)


# --- gone ---


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_follower_that_vanishes_is_forgotten(running: Running, accept: str, how: str) -> None:
    id_, process = running.process("wait")
    found = _process(running, id_, process)
    found.write("stdout", b"first")
    client = running.raw()
    client.sendall(_output(id_, process, accept))
    assert client.recv(1 << 16)
    until(lambda: len(found.followers) == 1)
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    until(lambda: not found.followers and running.server.connections == 0)


def test_clients_that_vanish_amid_a_fast_stream(running: Running) -> None:
    id_, process = running.process("endless", str(GIB))
    for _ in range(20):
        with running.raw() as client:
            client.sendall(_output(id_, process))
            client.recv(1 << 16)
    until(lambda: not _process(running, id_, process).followers)
    assert running.ask("GET", "/healthz").status == 200


def test_who_asked_and_left_before_the_answer(running: Running) -> None:
    """The command goes on to its end; nothing is left of the request."""
    id_ = running.sandbox()
    body = json.dumps({"cmd": ["wait"]}).encode()
    head = (
        f"POST /v1/sandboxes/{id_}/exec HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    )
    with running.raw() as client:
        client.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        processes = running.service.sandboxes[id_].processes
        until(lambda: len(processes) == 1)
    until(lambda: running.server.connections == 0)
    next(iter(processes.values())).end()
    assert running.ask("GET", "/healthz").status == 200


# --- slow ---


def test_half_a_request_is_not_waited_for_long(tmp_path: Path) -> None:
    with Running(tmp_path, QUICK) as running:
        assert status(running.say(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")) == 408
        assert running.say(b"") == b""  # nothing asked, nothing answered


def test_a_head_of_one_byte_a_second(tmp_path: Path) -> None:
    with Running(tmp_path, QUICK) as running, running.raw() as client:
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                for byte in b"GET /" + b"a" * 1000:
                    client.sendall(bytes((byte,)))
                    if stop.wait(0.1):
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        answer = read_all(client)
        stop.set()
        thread.join()
        assert status(answer) == 408


@pytest.mark.parametrize("sent", [b"", b'{"exec":'])
def test_half_a_body(tmp_path: Path, sent: bytes) -> None:
    with Running(tmp_path, QUICK) as running:
        head = b"POST /v1/run HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        answer = running.say(head + b"Content-Length: 100\r\n\r\n" + sent)
        assert status(answer) == 408
        assert b'"request_timeout"' in answer


def test_an_upload_of_one_byte_a_second(tmp_path: Path) -> None:
    """It would hold a thread for as long as it pleases."""
    with Running(tmp_path, QUICK) as running, contextlib.ExitStack() as stack:
        id_ = running.sandbox()
        client = stack.enter_context(running.raw())  # not before: it may be idle for a second
        path = f"/v1/sandboxes/{id_}/files?path=/slow"
        client.sendall(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n".encode())
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.2):
                    client.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        answer = read_all(client)
        stop.set()
        thread.join()
        assert status(answer) == 408
        assert "/slow" not in running.service.sandboxes[id_].files


def test_stdin_is_not_too_slow_where_its_command_is(tmp_path: Path) -> None:
    limits = msgspec.structs.replace(QUICK, body_seconds=5.0)
    with Running(tmp_path, limits) as running, contextlib.ExitStack() as stack:
        id_, process = running.process("deaf")
        client = stack.enter_context(running.raw())
        path = f"/v1/sandboxes/{id_}/processes/{process}/stdin"
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n".encode())
        client.sendall(b"x" * 10)
        threading.Event().wait(7)
        _process(running, id_, process).blocked.set()
        client.sendall(b"x")
        threading.Event().wait(0.2)
        client.sendall(b"x" * 9)
        assert status(client.recv(1 << 16)) == 204


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
def test_a_reader_of_one_byte_a_second_costs_a_buffer_and_is_cut_off(
    tmp_path: Path, accept: str
) -> None:
    with Running(tmp_path, msgspec.structs.replace(QUICK, stall=5.0)) as running:
        id_, process = running.process("endless", str(GIB))
        with running.raw() as client:
            client.sendall(_output(id_, process, accept))
            assert client.recv(1)
            until(lambda: len(_process(running, id_, process).followers) == 1)
            until(lambda: not _process(running, id_, process).followers)
            until(lambda: running.server.connections == 0)


def test_a_websocket_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    with Running(tmp_path, QUICK) as running:
        client, process = _attached(running, "endless", str(GIB))
        with client:
            until(lambda: not process.followers)


def test_a_websocket_that_does_not_read_holds_up_no_end(tmp_path: Path) -> None:
    """Its last words wait for nobody who takes nothing: he comes back with his cursors."""
    with Running(tmp_path) as running:
        client, process = _attached(running, "endless", str(GIB))
        with client:
            until(lambda: len(process.followers) == 1)
            running.begin_to_end(drain=30)
            running.join()
    assert running.drained is True


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
def test_a_stream_that_nobody_reads_holds_up_no_end(tmp_path: Path, accept: str) -> None:
    with Running(tmp_path) as running:
        id_, process = running.process("endless", str(GIB))
        with running.raw() as client:
            client.sendall(_output(id_, process, accept))
            assert client.recv(1)
            until(lambda: len(_process(running, id_, process).followers) == 1)
            running.begin_to_end(drain=30)
            running.join()
    assert running.drained is True


def test_exec_over_a_websocket_that_says_nothing(tmp_path: Path) -> None:
    with Running(tmp_path, QUICK) as running:
        url = f"ws://localhost/v1/sandboxes/{running.sandbox()}/exec"
        with unix_connect(running.path, url) as client:
            assert json.loads(client.recv(timeout=120))["event"] == "error"


# --- too large ---


def test_a_gigabyte_is_refused_before_it_is_read(running: Running) -> None:
    head = b"POST /v1/run HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with running.raw() as client:
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % GIB)  # and not a byte of it
        assert status(client.recv(1 << 16)) == 413


def test_a_gigabyte_in_chunks_is_refused_where_it_is_too_much(tmp_path: Path) -> None:
    with Running(tmp_path, WebLimits(body=1 << 20)) as running, running.raw() as client:
        head = b"POST /v1/run HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * (1 << 16) + b"\r\n"
        sent = 0
        with contextlib.suppress(OSError):
            while sent < GIB:
                client.sendall(chunk)
                sent += 1 << 16
        assert sent < 16 << 20  # the connection was cut
        assert status(read_all(client)) == 413


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a" * (1 << 20),
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
    ],
    ids=["url", "value", "name", "many"],
)
def test_a_head_that_is_too_large(running: Running, head: bytes) -> None:
    with running.raw() as client:
        with contextlib.suppress(OSError):
            client.sendall(head)
        answer = read_all(client)
    assert status(answer) == 431
    assert b'"headers_too_large"' in answer


def test_a_body_that_is_nested_deeply(running: Running) -> None:
    body = b'{"exec":' * 100_000
    got = running.ask("POST", "/v1/run", body, {"Content-Type": "application/json"})
    assert (got.status, got.code) == (400, "invalid_input")


# --- many ---


def test_two_thousand_connections(tmp_path: Path) -> None:
    """As many as are allowed stay; the oldest go, and whoever comes is served."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5000:
        pytest.skip(f"needs 5000 open files, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    try:
        limits = WebLimits(connections=1200, stranger=60.0)
        with Running(tmp_path, limits) as running, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(running.raw()) for _ in range(2000)]
            until(lambda: running.server.connections == 1200)
            for client in clients[800:]:
                client.sendall(request)
                assert status(client.recv(1 << 16)) == 200
            for client in clients[:800]:
                assert read_all(client) == b""
            assert running.ask("GET", "/healthz").status == 200
            stack.close()
            until(lambda: running.server.connections == 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_principal_leaves_connections_to_others(tmp_path: Path) -> None:
    with Running(tmp_path, WebLimits(connections=8)) as running, contextlib.ExitStack() as stack:

        def kept(key: str) -> int:
            client = stack.enter_context(running.raw())
            head = f"GET /v1/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n\r\n"
            client.sendall(head.encode())
            return status(client.recv(1 << 16))

        assert [kept("agd_alice") for _ in range(6)] == [200] * 4 + [429] * 2
        assert [kept("agd_bob") for _ in range(3)] == [200] * 2 + [429]
        # Strangers do not take what is left from anybody, and have seconds.
        strangers = [stack.enter_context(running.raw()) for _ in range(20)]
        assert running.ask("GET", "/v1/sandboxes").status == 200
        assert running.ask("GET", "/v1/sandboxes", headers=ALICE, tcp=True).status == 200
        del strangers


def test_who_hangs_up_before_it_is_known_keeps_no_seat(tmp_path: Path) -> None:
    with Running(tmp_path, WebLimits(connections=8)) as running:
        judged, known, looks_on = threading.Semaphore(0), [], threading.Event()

        def authenticate(credential: Credential) -> FakeService:
            judged.release()
            assert looks_on.wait(120)
            known.append(FakeService(running.service, KEYS["agd_alice"]))
            return known[-1]

        running.service.authenticate = authenticate  # type: ignore[method-assign]
        head = b"GET /v1/sandboxes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a.b.c\r\n\r\n"
        for _ in range(8):
            with running.raw() as client:
                client.sendall(head)
                assert judged.acquire(timeout=120)
            until(lambda: running.server.connections == 0)
        looks_on.set()
        until(lambda: len(known) == 8)
        assert status(running.say(head[:-2] + b"Connection: close\r\n\r\n")) == 200


def test_a_stranger_has_seconds_however_busy_it_is(tmp_path: Path) -> None:
    ask = b"GET /v1/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-Key: agd_alice\r\n\r\n"
    with (
        Running(tmp_path, WebLimits(stranger=3.0)) as running,
        running.raw() as known,
        contextlib.ExitStack() as stack,
    ):
        known.sendall(ask)
        assert status(known.recv(1 << 16)) == 200
        idle, busy = (stack.enter_context(running.raw()) for _ in range(2))
        answers = 0
        with contextlib.suppress(ConnectionError):
            while True:  # it keeps the connection busy, and that buys no time
                busy.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                if not busy.recv(1 << 16):
                    break
                answers += 1
        assert answers > 0
        assert read_all(idle) == b""
        known.sendall(ask)
        assert status(known.recv(1 << 16)) == 200


def test_more_waits_than_threads_are_refused(tmp_path: Path) -> None:
    with Running(tmp_path, WebLimits(waits=4)) as running:
        id_ = running.sandbox()
        path = f"/v1/sandboxes/{id_}/exec"
        threads = [
            threading.Thread(target=running.ask, args=("POST", path, {"cmd": ["wait"]}))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        processes = running.service.sandboxes[id_].processes
        until(lambda: len(processes) == 2)
        refused = running.ask("POST", path, {"cmd": ["echo"]})
        assert (refused.status, refused.json["code"]) == (429, "full"), refused.body
        assert refused.headers["retry-after"] == "1"
        assert running.ask("GET", "/v1/sandboxes").status == 200  # short calls go on
        other = running.ask("POST", path, {"cmd": ["echo"]}, BOB)
        assert (other.status, other.code) == (404, "not_found")  # another caller has room
        assert running.ask("GET", f"/v1/sandboxes/{id_}").status == 200
        proc = next(iter(processes))
        kill = f"/v1/sandboxes/{id_}/processes/{proc}/signal"
        assert running.ask("POST", kill, {"signal": 1}).status == 204
        for process in list(processes.values()):
            process.end()
        for thread in threads:
            thread.join()


def test_a_link_that_waits_for_an_approval_holds_up_no_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, approved, make = threading.Event(), threading.Event(), FakePorts.link

    def link(*args: Any, **options: Any) -> PortLink:
        asked.set()
        assert approved.wait(120)
        return make(*args, **options)

    monkeypatch.setattr(FakePorts, "link", link)
    with Running(tmp_path, WebLimits(short=1)) as running:
        path = f"/v1/sandboxes/{running.sandbox()}/links"
        asks = threading.Thread(target=running.ask, args=("POST", path, {"port": 8080}))
        asks.start()
        try:
            assert asked.wait(120)
            with running.raw() as client:
                client.settimeout(30)
                client.sendall(b"GET /v1/sandboxes HTTP/1.1\r\nHost: x\r\n\r\n")
                assert status(client.recv(1 << 16)) == 200
        finally:
            approved.set()
            asks.join()


def test_thousands_of_pipelined_requests(running: Running) -> None:
    answer = running.say(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)
    assert answer.count(b"HTTP/1.1 200 ") <= running.limits.pipelined + 1


def test_a_few_pipelined_requests_are_answered_in_order(running: Running) -> None:
    one = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = running.say(one % b"healthz" + one % b"readyz" + one % b"nope" + last)
    found = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert found == [200, 200, 404, 404]


def test_five_hundred_idle_followers_cost_little(tmp_path: Path) -> None:
    """Under 40 KB each: the bound is of memory, as the kernel counts it."""
    with Running(tmp_path) as running, contextlib.ExitStack() as stack:
        id_, process = running.process("wait")
        path = f"/v1/sandboxes/{id_}/processes/{process}/attach"
        handshake = (
            f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ).encode()
        clients = []

        def follow(count: int) -> None:
            for _ in range(count):
                client = stack.enter_context(running.raw())
                client.sendall(handshake)
                clients.append(client)
            until(lambda: len(_process(running, id_, process).followers) == len(clients))

        follow(20)
        gc.collect()
        before = _rss()
        follow(500)
        gc.collect()
        assert _rss() - before < 20 << 20
        _process(running, id_, process).write("stdout", b"wake up")
        for client in clients:
            got = b""
            while b"wake up" not in got:
                got += client.recv(1 << 16)


def _rss() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


# --- malicious ---


_RUN = b"POST /v1/run HTTP/1.1\r\nHost: x\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        _RUN + b"Content-Length: 5\r\n" + _CHUNKED + b"\r\n0\r\n\r\n",
        _RUN + _CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
        _RUN + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n123456",
        _RUN + b"Content-Length: -5\r\n\r\n",
        _RUN + b"Content-Length: 5, 5\r\n\r\n12345",
        _RUN + b"Content-Length: +5\r\n\r\n12345",
        _RUN + b"Content-Length: 0x5\r\n\r\n12345",
        _RUN + b"Content-Length: 99999999999999999999\r\n\r\n",
        _RUN + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        _RUN + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        _RUN + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        _RUN + _CHUNKED + b"\r\nzz\r\n\r\n",
        _HEALTH + b"X: a\x00b\r\n\r\n",
        _HEALTH + b" folded: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"CONNECT evil:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS handshake
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\xff" * 100,
    ],
)
def test_header_smuggling_is_no_request(running: Running, request_: bytes) -> None:
    """One answer, an error, and the connection is over: nothing behind it is looked at."""
    behind = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = running.say(request_ + behind)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert status(answer) == 400
    assert running.service.calls == []


def test_garbage_behind_a_request_does_not_spoil_its_answer(running: Running) -> None:
    answer = running.say(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + b"\xff\xff garbage\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"ok\n")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_credentials_that_are_there_twice(running: Running) -> None:
    head = b"GET /v1/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    twice = b"X-API-Key: agd_alice\r\nX-API-Key: agd_bob\r\n\r\n"
    assert status(running.say(head + twice)) == 400


def test_an_upgrade_that_is_no_websocket_is_ignored(running: Running) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    answer = running.say(head + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status(answer) == 200 and answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("url", "header"), [(b"?x=" + b"x" * 9000, b""), (b"", b"Cookie: x=" + b"x" * 9000 + b"\r\n")]
)
def test_a_handshake_with_a_long_line_is_answered(
    running: Running, url: bytes, header: bytes
) -> None:
    """The WebSocket's own parser, which reads no line of over 8 KiB, would say nothing at all."""
    answer = running.say(
        b"GET /v1/sandboxes/sbx-x/exec%b HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n%b"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" % (url, header)
    )
    assert status(answer) == 431 and b"8192 bytes" in answer, answer


def _attached(running: Running, *argv: str) -> tuple[socket.socket, FakeProcess]:
    id_, process = running.process(*(argv or ("cat",)))
    client = running.raw()
    path = f"/v1/sandboxes/{id_}/processes/{process}/attach"
    client.sendall(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    got = b""
    while b"started" not in got:
        got += client.recv(1 << 16)
    return client, _process(running, id_, process)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (b"\x82\x01x", 1002),  # a client must mask
        (b"\xf2\x80\x00\x00\x00\x00", 1002),  # reserved bits
        (b"\x83\x80\x00\x00\x00\x00", 1002),  # a reserved opcode
        (b"\x80\x80\x00\x00\x00\x00", 1002),  # goes on with nothing
        (b"\x89\xfe\x00\x7e\x00\x00\x00\x00" + bytes(126), 1002),  # a ping that is too long
        (b"\x09\x80\x00\x00\x00\x00", 1002),  # a ping in fragments
        (b"\x82\xff\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00", 1009),  # 4 GiB
        (b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00", 1009),  # a negative length
        (b"\x81\x81\x00\x00\x00\x00\xff", 1007),  # no UTF-8
        (b"\x02\x80\x00\x00\x00\x00" + b"\x00\x80\x00\x00\x00\x00" * 5000, 1009),
    ],
)
def test_websocket_garbage_is_closed_with_its_code(
    running: Running, frames: bytes, code: int
) -> None:
    client, process = _attached(running)
    with client:
        with contextlib.suppress(OSError):
            client.sendall(frames)
        rest = read_all(client)
    at = rest.rfind(b"\x88")
    assert at >= 0 and struct.unpack(">H", rest[at + 2 : at + 4])[0] == code
    until(lambda: not process.followers)
    assert process.result is None


def test_pings_without_end_whose_answers_nobody_reads(running: Running) -> None:
    client, process = _attached(running)
    ping = b"\x89\xfd\x00\x00\x00\x00" + bytes(125)
    with client, pytest.raises(OSError):
        for _ in range(100_000):
            client.sendall(ping)
    until(lambda: not process.followers)


def test_a_loop_that_is_kept_busy_by_one_still_serves_others(running: Running) -> None:
    id_, process = running.process("endless", str(64 * GIB))
    with running.raw() as client:
        client.sendall(_output(id_, process))
        stop = threading.Event()

        def swallow() -> None:
            buffer = bytearray(1 << 20)
            while not stop.is_set() and client.recv_into(buffer):
                pass

        thread = threading.Thread(target=swallow)
        thread.start()
        try:
            for _ in range(20):
                assert running.ask("GET", "/v1/sandboxes").status == 200
        finally:
            stop.set()
            thread.join()


def test_nothing_is_left_on_the_loop(running: Running) -> None:
    id_, process = running.process("echo", "x")
    assert running.say(_output(id_, process)[:-2] + b"Connection: close\r\n\r\n")

    async def count() -> int:
        return len(asyncio.all_tasks())

    def tasks() -> int:
        return asyncio.run_coroutine_threadsafe(count(), running.loop).result(120)

    until(lambda: tasks() <= 3)  # the main one, the tick, and ``count`` itself
