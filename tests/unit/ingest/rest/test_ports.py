"""HTTP and WebSocket to a hostile server inside."""

import contextlib
import http.client
import socket
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.ingest.fake import until
from tests.unit.ingest.harness import Running, read_all
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import unix_connect
from websockets.sync.server import serve


class Inside:
    """Answers every connection with ``answer``, after it has read a request's head."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") -> None:
        self.answer = answer
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                got = b""
                while b"\r\n\r\n" not in got:
                    part = self.request.recv(1 << 16)
                    if not part:
                        return
                    got += part
                head, _, body = got.partition(b"\r\n\r\n")
                outer.heads.append(head)
                length = _length(head)
                while len(body) < length:
                    body += self.request.recv(1 << 16)
                outer.bodies.append(body)
                with contextlib.suppress(OSError):
                    self.request.sendall(outer.answer)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = False
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> "Inside":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _to(id_: str, port: int, path: str = "/") -> str:
    return f"/v1/sandboxes/{id_}/ports/{port}{path}"


def test_there_and_back(running: Running) -> None:
    id_ = running.sandbox()
    answer = b"HTTP/1.1 201 Made\r\nContent-Length: 2\r\nX-App: a\r\nLocation: /next\r\n\r\nhi"
    with Inside(answer) as inside:
        got = running.ask("POST", _to(id_, inside.port, "/a?b=c"), b"the body")
    assert (got.status, got.body, got.headers["x-app"]) == (201, b"hi", "a")
    assert got.headers["location"] == _to(id_, inside.port, "/next")
    assert "sandbox" in got.headers["content-security-policy"]
    assert inside.heads[0].startswith(b"POST /a?b=c HTTP/1.1\r\n")
    assert inside.bodies == [b"the body"]


def test_credentials_and_hops_stay_outside(running: Running) -> None:
    id_ = running.ask("POST", "/v1/sandboxes", {}, {"X-API-Key": "agd_alice"}).json["id"]
    headers = {
        "X-API-Key": "agd_alice",
        "Proxy-Authorization": "Basic x",
        "Connection": "keep-alive, X-Private, Content-Length",
        "X-Private": "1",
        "TE": "trailers",
        "Keep-Alive": "timeout=5",
        "X-Forwarded-For": "1.2.3.4",
        "Forwarded": "for=1.2.3.4",
        "Cookie": "kept=1",
    }
    with Inside() as inside:
        assert running.ask("POST", _to(id_, inside.port), b"12", headers).status == 200
        bearer = {"Authorization": "Bearer agd_alice"}
        assert running.ask("GET", _to(id_, inside.port), None, bearer).status == 200
    for head in inside.heads:
        lower = head.lower()
        for gone in (b"agd_", b"authorization", b"x-private", b"keep-alive", b"1.2.3.4", b"\nte:"):
            assert gone not in lower
        assert b"\r\nhost: localhost:%d\r\n" % inside.port in lower
        assert b"\r\nconnection: close" in lower
    assert b"cookie" not in inside.heads[0].lower()  # this port has not set it
    assert inside.bodies[0] == b"12"


@pytest.mark.parametrize(
    ("path", "inside_sees"),
    [
        ("", b"/"),
        ("/", b"/"),
        ("/../../../../v1/keys", b"/../../../../v1/keys"),
        ("/%2e%2e/%2F/x%00%0d%0aX:y", b"/%2e%2e/%2F/x%00%0d%0aX:y"),
        ("//evil.example/x", b"//evil.example/x"),
        ("/a%20b?c=%26&d", b"/a%20b?c=%26&d"),
    ],
)
def test_a_path_goes_inside_as_it_was_written(
    running: Running, path: str, inside_sees: bytes
) -> None:
    id_ = running.sandbox()
    with Inside() as inside:
        request = f"GET {_to(id_, inside.port, path)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        assert running.say(request.encode() + b"\r\n").startswith(b"HTTP/1.1 200 ")
    assert inside.heads[0].split(b" ")[1] == inside_sees


def test_a_path_that_is_another_once_decoded_leads_nowhere(running: Running) -> None:
    id_ = running.sandbox()
    with Inside() as inside:
        port = inside.port
        for path in (
            f"/v1/sandboxes/{id_}%2Fports%2F{port}/x",
            f"/v1/sandboxes/{id_}/ports%2F{port}/x",
            f"/v1/sandboxes/{id_}/ports/%3{str(port)[0]}{str(port)[1:]}/x",
            f"/v1/sandboxes/%73{id_[1:]}/ports/{port}/x",
            f"/v1/sandboxes/x/../{id_}/ports/{port}/x",
            f"/v1//sandboxes/{id_}/ports/{port}/x",
        ):
            assert running.ask("GET", path).status == 404, path
    assert inside.heads == []


@pytest.mark.parametrize("port", ["0", "65536", "80x", "-1", "+80", "080", "1e2", "\u0661"])
def test_what_is_no_port(running: Running, port: str) -> None:
    from urllib.parse import quote

    reply = running.ask("GET", f"/v1/sandboxes/{running.sandbox()}/ports/{quote(port)}/")
    assert reply.status in (400, 404)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad Name: a\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: evil\r\n\r\nraw",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    ],
)
def test_an_answer_that_is_none(running: Running, answer: bytes) -> None:
    id_ = running.sandbox()
    with Inside(answer) as inside:
        got = running.ask("GET", _to(id_, inside.port))
    assert (got.status, got.code) == (502, "guest_error")


def test_an_answer_that_breaks_off_is_not_taken_for_whole(running: Running) -> None:
    id_ = running.sandbox()
    with (
        Inside(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc") as inside,
        contextlib.closing(running.connect()) as connection,
        pytest.raises((http.client.IncompleteRead, ConnectionError)),
    ):
        connection.request("GET", _to(id_, inside.port))
        connection.getresponse().read()


def test_an_answer_cannot_smuggle_a_second_one(running: Running) -> None:
    id_ = running.sandbox()
    second = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    with (
        Inside(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + second) as inside,
        contextlib.closing(running.connect()) as connection,
    ):
        connection.request("GET", _to(id_, inside.port))
        assert connection.getresponse().read() == b"ok"
        connection.request("GET", "/healthz")  # on the same connection
        assert connection.getresponse().read() == b"ok\n"


def test_headers_that_speak_for_the_whole_site_stay_inside(running: Running) -> None:
    id_ = running.sandbox()
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nStrict-Transport-Security: max-age=1\r\n"
        b"Clear-Site-Data: *\r\nService-Worker-Allowed: /\r\nAlt-Svc: h2\r\n\r\n"
    )
    with Inside(answer) as inside:
        got = running.ask("GET", _to(id_, inside.port))
    for name in ("strict-transport-security", "clear-site-data", "service-worker-allowed"):
        assert name not in got.headers


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(running: Running, status: int) -> None:
    id_ = running.sandbox()
    with Inside(b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n" % status) as inside:
        got = running.ask("GET", _to(id_, inside.port))
    assert (got.status, got.body) == (status, b"")


def test_nothing_listens(running: Running) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert running.ask("GET", _to(running.sandbox(), port)).status == 409
    assert running.ask("GET", _to("none", 80)).status == 404


def test_a_client_that_vanishes_ends_the_connection_inside(running: Running) -> None:
    id_ = running.sandbox()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        with running.raw() as client:
            request = f"GET {_to(id_, server.getsockname()[1])} HTTP/1.1\r\nHost: x\r\n\r\n"
            client.sendall(request.encode())
            inside, _ = server.accept()
            inside.settimeout(120)
            assert inside.recv(1 << 16)
        with inside:
            assert read_all(inside) == b""


# --- WebSocket ---


@contextlib.contextmanager
def _websocket_inside(handler: Any, **options: Any) -> Iterator[int]:
    with serve(handler, "127.0.0.1", 0, compression=None, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_websocket_inside(running: Running) -> None:
    id_ = running.sandbox()
    seen: list[Any] = []

    def echo(connection: Any) -> None:
        seen.append(connection.request.headers)
        for message in connection:
            connection.send(message)

    headers = {"Authorization": "Bearer agd_alice", "X-App": "a"}
    id_ = running.ask("POST", "/v1/sandboxes", {}, {"X-API-Key": "agd_alice"}).json["id"]
    with _websocket_inside(echo, subprotocols=["chat"]) as port:
        url = f"ws://localhost{_to(id_, port, '/ws?x=1')}"
        with unix_connect(
            running.path, url, additional_headers=headers, subprotocols=["chat", "other"]
        ) as client:
            assert client.subprotocol == "chat"
            for message in ("text \u00e9", b"\x00\xff", b"x" * 500_000):
                client.send(message)
                assert client.recv(timeout=120) == message
    assert "authorization" not in seen[0] and seen[0]["x-app"] == "a"


def test_a_client_that_sends_much_before_it_reads(running: Running) -> None:
    """Both directions are full at times: neither may wait for the other for ever."""
    id_ = running.sandbox()

    def echo(connection: Any) -> None:
        for message in connection:
            connection.send(message)

    with _websocket_inside(echo, max_size=1 << 22) as port:
        url = f"ws://localhost{_to(id_, port)}"
        with unix_connect(running.path, url, max_queue=2) as client:
            message = b"m" * (256 << 10)
            sender = threading.Thread(target=lambda: [client.send(message) for _ in range(40)])
            sender.start()
            for _ in range(40):
                assert client.recv(timeout=120) == message
            sender.join()


def test_who_closes_inside_tells_why(running: Running) -> None:
    id_ = running.sandbox()
    with _websocket_inside(lambda connection: connection.close(4001, "enough")) as port:
        url = f"ws://localhost{_to(id_, port)}"
        with (
            unix_connect(running.path, url) as client,
            pytest.raises(ConnectionClosed) as closed,
        ):
            client.recv(timeout=120)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "enough")


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"junk\r\n\r\n", b""],
)
def test_no_websocket_inside(running: Running, answer: bytes) -> None:
    id_ = running.sandbox()
    with Inside(answer) as inside, pytest.raises(InvalidStatus) as refused:
        unix_connect(running.path, f"ws://localhost{_to(id_, inside.port)}")
    assert refused.value.response.status_code == 502


def test_garbage_after_the_handshake_inside_closes_the_client(running: Running) -> None:
    id_ = running.sandbox()

    def lie(connection: Any) -> None:
        connection.socket.sendall(b"\xff\xff\xff\xff not a frame")

    with _websocket_inside(lie) as port:
        url = f"ws://localhost{_to(id_, port)}"
        with unix_connect(running.path, url) as client, pytest.raises(ConnectionClosed):
            client.recv(timeout=120)
    until(lambda: running.server.connections == 0)
