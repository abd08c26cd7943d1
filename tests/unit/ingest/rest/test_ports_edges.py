"""What servers inside say to browsers in odd ways, and what clients say in odd places."""

import http.cookiejar
import logging
import socket
import threading
import urllib.request
from hashlib import sha256

import pytest
from tests.unit.ingest.harness import ALICE, Running, read_all
from tests.unit.ingest.rest.test_ports import Inside, _to
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import unix_connect
from websockets.sync.server import ServerConnection, serve

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"


def over_tcp(running: Running, parts: list[bytes]) -> bytes:
    with socket.create_connection(("127.0.0.1", running.port), 20) as client:
        for part in parts:
            client.sendall(part)
        return read_all(client)


def cookie_of(running: Running, id_: str, inside: Inside, path: str = "/") -> list[str]:
    got = running.ask("GET", _to(id_, inside.port, path))
    assert got.status == 200, got.body
    return got.headers.get_all("set-cookie") or []


@pytest.mark.parametrize(
    ("path", "given", "where", "rest"),
    [
        ("/", "a=1; Path=/; Domain=localhost; HttpOnly", "", "; HttpOnly"),
        ("/x/y?z", "a=1", "/x", ""),
        ("/x/y", "a=1; path=/other; SECURE; SameSite=Lax", "/other", "; SECURE; SameSite=Lax"),
        ("/x/y", "a=1; Path=nowhere; Domain=.example", "/x", ""),
        ("", "__Host-a=1; Secure; Path=/", "", "; Secure"),
    ],
)
def test_a_cookie_is_of_the_port_that_set_it(
    running: Running, path: str, given: str, where: str, rest: str
) -> None:
    id_ = running.sandbox()
    with Inside(OK + f"Set-Cookie: {given}\r\n\r\nok".encode()) as inside:
        (told,) = cookie_of(running, id_, inside, path)
        name = given.partition("=")[0]
        marked, _, after = told.partition("=1; ")
        assert marked.startswith("agentd-") and marked.endswith(f"-{name}")
        assert after == f"Path={_to(id_, inside.port, '')}{where}{rest}"
        headers = {"Cookie": f"session=secret; {marked}=1; agentd-{'0' * 16}-{name}=2; b"}
        running.ask("GET", _to(id_, inside.port), None, headers)
    cookies = [line for line in inside.heads[1].split(b"\r\n") if b"ookie" in line]
    assert cookies == [f"cookie: {name}=1".encode()]


def test_a_client_that_keeps_cookies_gives_each_port_its_own(running: Running) -> None:
    one, two = (
        running.ask("POST", "/v1/sandboxes", {}, ALICE).json["id"],
        running.ask("POST", "/v1/sandboxes", {}, ALICE).json["id"],
    )
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    with (
        Inside(OK + b"Set-Cookie: a=one; Path=/\r\n\r\nok") as first,
        Inside(OK + b"Set-Cookie: a=two; Path=/; Domain=127.0.0.1\r\n\r\nok") as second,
    ):
        for _ in range(2):
            for id_, inside in ((one, first), (two, second)):
                url = f"http://127.0.0.1:{running.port}{_to(id_, inside.port, '/p')}"
                opener.open(urllib.request.Request(url, headers=ALICE)).close()
    assert b"cookie" not in first.heads[0].lower() and b"cookie" not in second.heads[0].lower()
    assert b"cookie: a=one" in first.heads[1].lower()
    assert b"cookie: a=two" in second.heads[1].lower()


def test_a_websocket_takes_along_no_other_cookie(running: Running) -> None:
    id_ = running.sandbox()
    seen: list[list[str]] = []

    def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.append(connection.request.headers.get_all("cookie"))
        connection.send("done")

    with Inside(OK + b"Set-Cookie: a=1; Path=/\r\n\r\nok") as plain:
        (told,) = cookie_of(running, id_, plain)
    theirs = told.partition(";")[0]
    with serve(handler, "127.0.0.1", 0) as inside:
        thread = threading.Thread(target=inside.serve_forever)
        thread.start()
        try:
            port = inside.socket.getsockname()[1]
            own = f"agentd-{sha256(_to(id_, port, '').encode()).hexdigest()[:16]}-mine=2"
            headers = {"Cookie": f"session=secret; {theirs}; {own}"}
            url = f"ws://localhost{_to(id_, port)}"
            with unix_connect(running.path, url, additional_headers=headers) as ws:
                assert ws.recv(timeout=120) == "done"
        finally:
            inside.shutdown()
            thread.join()
    assert seen == [["mine=2"]]


def test_a_server_that_knows_its_prefix_is_not_given_it_twice(running: Running) -> None:
    id_ = running.sandbox()
    with Inside() as inside:
        prefix = _to(id_, inside.port, "")
        for path, where in ((prefix, ""), (f"{prefix}/app", "/app"), (f"{prefix}1", f"{prefix}1")):
            head = OK + f"Set-Cookie: a=1; Path={path}\r\n\r\nok".encode()
            inside.answer = head
            (told,) = cookie_of(running, id_, inside)
            assert told.endswith(f"; Path={prefix}{where}")


@pytest.mark.parametrize("value", ["nothing", "=x", " =x", "  "])
def test_a_cookie_without_a_name_sets_nothing(running: Running, value: str) -> None:
    with Inside(OK + f"Set-Cookie: {value}\r\n\r\nok".encode()) as inside:
        assert cookie_of(running, running.sandbox(), inside) == []


@pytest.mark.parametrize("status", [600, 700, 999])
def test_a_status_that_there_is_not_is_a_502(
    running: Running, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Inside(f"HTTP/1.1 {status} Odd\r\nContent-Length: 2\r\n\r\nok".encode()) as inside:
        reply = running.ask("GET", _to(running.sandbox(), inside.port))
    assert (reply.status, reply.code) == (502, "guest_error")
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_the_request_has_the_id_that_we_gave_it_and_no_other(running: Running) -> None:
    with Inside(OK + b"X-Request-Id: forged\r\n\r\nok") as inside:
        reply = running.ask("GET", _to(running.sandbox(), inside.port))
    (told,) = reply.headers.get_all("x-request-id", ())
    assert reply.status == 200 and told.startswith("req-")


def test_two_locations_are_a_502(running: Running) -> None:
    with Inside(OK + b"Location: /a\r\nLocation: /b\r\n\r\nok") as inside:
        assert running.ask("GET", _to(running.sandbox(), inside.port)).status == 502


def test_chunks_count_where_a_length_is_told_as_well(running: Running) -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n0\r\n\r\n"
    )
    with Inside(answer) as inside:
        reply = running.ask("GET", _to(running.sandbox(), inside.port))
    assert (reply.status, reply.body) == (200, b"hello")
    assert reply.headers["content-length"] is None


@pytest.mark.parametrize("apart", [False, True])
def test_a_trailer_is_no_header(running: Running, apart: bool) -> None:
    head = (
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    rest = b"2\r\n{}\r\n0\r\nX-API-Key: agd_alice\r\nX-Other: 1\r\n\r\n"
    said = over_tcp(running, [head, rest] if apart else [head + rest])
    assert b" 401 " in said.partition(b"\r\n")[0], said


def test_trailers_are_bounded(running: Running) -> None:
    head = (
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nX-API-Key: agd_alice\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    )
    many = b"".join(b"X-%d: %b\r\n" % (n, b"y" * 900) for n in range(200))
    said = over_tcp(running, [head + many + b"\r\n"])
    assert b" 400 " in said.partition(b"\r\n")[0], said[:300]


@pytest.mark.parametrize(
    ("twice", "status"),
    [
        (b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n", 415),
        (b"Content-Type: application/json\r\n", 400),
        (b"Accept: text/html\r\nAccept: application/json\r\n", 201),
    ],
)
def test_of_two_headers_of_a_name_none_is_left_out(
    running: Running, twice: bytes, status: int
) -> None:
    head = b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    rest = b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    said = running.say(head + twice + rest)
    assert b" %d " % status in said.partition(b"\r\n")[0], said


@pytest.mark.parametrize("proven", [False, True])
@pytest.mark.parametrize(
    "body", [b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]
)
def test_a_handshake_with_a_body_is_answered(running: Running, body: bytes, proven: bool) -> None:
    head = (
        b"GET /v1/sandboxes/sbx-x/exec HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    key = b"X-API-Key: agd_alice\r\n" if proven else b""
    said = over_tcp(running, [head + key + body])
    assert b" 400 " in said.partition(b"\r\n")[0] and b"handshake" in said, said


def test_a_request_without_a_host_is_none(running: Running) -> None:
    assert b" 400 " in running.say(b"GET /healthz HTTP/1.1\r\n\r\n").partition(b"\r\n")[0]
    twice = b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"
    assert b" 400 " in running.say(twice).partition(b"\r\n")[0]
    assert b" 200 " in running.say(b"GET /healthz HTTP/1.0\r\n\r\n").partition(b"\r\n")[0]


def test_head_is_answered_where_get_is(running: Running) -> None:
    id_, process = running.process("echo", "x")
    for path in (
        "/healthz", "/readyz", "/openapi.json", "/v1/version", f"/v1/sandboxes/{id_}",
        f"/v1/sandboxes/{id_}/processes/{process}/output?stream=stdout&follow=true",
    ):  # fmt: skip
        reply = running.ask("HEAD", path)
        assert (reply.status, reply.body) == (200, b""), path
    assert running.ask("HEAD", "/v1/sandboxes/none").status == 404
    assert running.ask("HEAD", "/v1/run").status == 405
    length = running.ask("HEAD", "/v1/version").headers["content-length"]
    assert int(length) == len(running.ask("GET", "/v1/version").body)


def test_a_text_that_is_none_ends_the_websocket_without_a_trace(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    id_, process = running.process("cat")
    url = f"ws://localhost/v1/sandboxes/{id_}/processes/{process}/attach"
    with unix_connect(running.path, url) as ws:
        ws.send(b"\xff\xfe", text=True)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                ws.recv(timeout=120)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1007
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
