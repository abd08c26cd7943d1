"""Requests and answers on their way through a terminator, byte by byte."""

import errno
import json
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.captured import eventually
from tests.unit.egress.terminator.world import (
    HOST,
    JudgedProgram,
    Judging,
    read_head,
)
from tests.unit.egress.terminator.world import (
    judging as made_judging,
)

from agentd.egress import terminating
from agentd.linux import dialled

# 8: TLS ended without a word, ssl.SSL_ERROR_EOF; 1: Python 3.11 says of a reset that it is unknown.
ERRORS = (errno.ECONNRESET, errno.EPIPE, 8, 1)
RULES = (f"GET|HEAD|POST {HOST}/v1/**", f"!POST {HOST}/v1/closed/**")
GET = f"GET /v1/x HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def judging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judging]:
    with made_judging(tmp_path_factory.mktemp("host")) as made:
        yield made


@pytest.fixture(scope="module")
def at_one_host(judging: Judging) -> Iterator[tuple[JudgedProgram, "Heard"]]:
    host = Heard()
    with judging.program(host, RULES) as it:
        yield it, host


class Heard:
    """A host that answers every head with OK, and keeps what it heard."""

    def __init__(self, answer: bytes = OK) -> None:
        self.answer = answer
        self.heads: list[bytes] = []

    def __call__(self, sock: socket.socket) -> None:
        while head := read_head(sock):
            self.heads.append(head)
            sock.sendall(self.answer)


def test_the_host_hears_what_the_program_said_and_nothing_else(judging: Judging) -> None:
    said = (
        "POST /v1/a%20b;c=d?q=%2F..&e HTTP/1.1\r\n"
        f"Host: {HOST}\r\nX-Mixed-Case: a  b\r\nx-twice: 1\r\nX-Twice: 2\r\n"
        "Cookie: a=b; c=d\r\nAccept: */*\r\nContent-Length: 3\r\n\r\nabc"
    )
    heard: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        head = read_head(sock)
        heard.append(head + sock.recv(3))
        sock.sendall(b"HTTP/1.1 201 Made\r\nX-Its: own\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n")
        sock.sendall(b"Content-Length: 2\r\n\r\nok")

    with judging.program(serve, RULES) as it:
        assert it.ask("begin()") == 0
        assert it.ask("kept[0].selected_alpn_protocol()") == "http/1.1"
        it.ask(f"say(0, {said!r})")
        answer = it.ask("hear(0, 86)")
    assert heard == [said.encode()]
    assert answer == (
        "HTTP/1.1 201 Made\r\nX-Its: own\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
        "Content-Length: 2\r\n\r\nok"
    )


def test_each_request_of_a_connection_is_judged(judging: Judging) -> None:
    host = Heard()
    with judging.program(host, RULES) as it:
        assert it.ask("begin()") == 0
        for _ in range(2):
            it.ask(f"say(0, {GET!r})")
            assert it.ask("hear(0, 40)").endswith("ok")
        it.ask(f"say(0, {GET.replace('/v1/x', '/v2/x')!r})")
        told = it.ask("rest(0)")
        assert told.startswith("HTTP/1.1 403 Forbidden\r\n")
        error = json.loads(told.partition("\r\n\r\n")[2])["error"]
        assert error["message"].endswith("no rule allows GET /v2/x")
        closed = it.ask(f"once({GET.replace('GET /v1/x', 'POST /v1/closed/x')!r})")
        assert f"denied by {RULES[1]}" in closed
        assert len(host.heads) == 2
        rows = [(row["method"], row["path"], row["status"], row["rule"]) for row in it.requests()]
    assert rows == [
        ("GET", "/v1/x", 200, RULES[0]),
        ("GET", "/v1/x", 200, RULES[0]),
        ("GET", "/v2/x", 403, ""),
        ("POST", "/v1/closed/x", 403, RULES[1]),
    ]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (f"GET https://{HOST}/v1/x HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "no path"),
        (f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "CONNECT"),
        (f"GET /v1/../v2 HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "."),
        (f"GET /v1/%2e%2E/v2 HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "."),
        (f"GET /v1/..;/v2 HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "."),
        (f"GET /v1/..%2Fv2 HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "."),
        (f"GET /v1\\..\\v2 HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "backslash"),
        (f"GET /v1/%5c HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "%5C"),
        (f"GET /v1/%0d%0aX: HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "%0D"),
        (f"GET /v1/%zz HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "no escape"),
        (f"GET /v1/x#y HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "no path"),
        (f"get /v1/x HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "method"),
        (f"GET  /v1/x HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "HTTP/1"),
        (f"GET /v1/x HTTP/2.0\r\nHost: {HOST}\r\n\r\n", "HTTP/1"),
        (f"GET /v1/x HTTP/1.1\nHost: {HOST}\n\n", "LF"),
        (f"GET /v1/x HTTP/1.1\r\nHost: {HOST}\r\nA: b\rC: d\r\n\r\n", "CR"),
        (f"GET /v1/x HTTP/1.1\r\nHost: {HOST}\r\nA: b\nC: d\r\n\r\n", "LF"),
        (f"GET /v1/x HTTP/1.1\r\nHost: {HOST}\r\nA: b\r\n c\r\n\r\n", "several lines"),
        (f"GET /v1/x HTTP/1.1\r\nHost : {HOST}\r\n\r\n", "malformed"),
        ("GET /v1/x HTTP/1.1\r\nA: b\r\n\r\n", "0 Host"),
        (f"GET /v1/x HTTP/1.1\r\nHost: {HOST}\r\nHost: other.example.com\r\n\r\n", "2 Host"),
        (f"POST /v1/x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1, 1\r\n\r\na", "length"),
        (f"POST /v1/x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: +1\r\n\r\na", "length"),
        (
            f"POST /v1/x HTTP/1.1\r\nHost: {HOST}\r\n" + "Content-Length: 1\r\n" * 2 + "\r\na",
            "length",
        ),
        (
            f"POST /v1/x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n{CHUNKED}\r\n0\r\n\r\n",
            "both",
        ),
        (
            f"POST /v1/x HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "chunked",
        ),
        (
            f"GET /v1/x HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
            "websocket",
        ),
        (f"GET /v1/x HTTP/1.1\r\nHost: {HOST}\r\n" + "A: b\r\n" * 101 + "\r\n", "100 fields"),
        (
            f"GET /v1/x HTTP/1.1\r\nHost: {HOST}\r\nX-Method-Override: "
            + ",".join("GET" + each for each in "ABCDEFGHIJKLMNOP")
            + "\r\n\r\n",
            "too many",
        ),
        (f"GET /v1/x HTTP/1.1\r\nHost: {HOST}\r\nA: {'b' * 70000}\r\n\r\n", "65536"),
        (f"GET /v1/x HTTP/1.1\r\nHost: {HOST}\r\nA: b\0c\r\n\r\n", "NUL"),
        (f"POST /v1/x HTTP/1.0\r\nHost: {HOST}\r\n{CHUNKED}\r\n0\r\n\r\n", "chunked"),
        (f"POST /v1/x HTTP/1.1\r\nHost: {HOST}\r\n{CHUNKED}{CHUNKED}\r\n0\r\n\r\n", "chunked"),
        (f"POST /v1/x HTTP/1.1\r\nHost: {HOST}\r\nExpect: 200-ok\r\n\r\n", "expects"),
    ],
)
def test_what_two_servers_could_take_for_two_things_goes_no_further(
    at_one_host: tuple[JudgedProgram, Heard], said: str, why: str
) -> None:
    it, host = at_one_host
    told = it.ask(f"once({said!r})")
    assert told.startswith("HTTP/1.1 400 Bad Request\r\n"), told
    assert why in json.loads(told.partition("\r\n\r\n")[2])["error"]["message"]
    assert host.heads == []


@pytest.mark.parametrize("other", ["other.example.com", f"{HOST}:8443", f"x.{HOST}", "127.0.0.1"])
def test_the_host_of_each_request_is_the_one_that_was_dialled(
    at_one_host: tuple[JudgedProgram, Heard], other: str
) -> None:
    it, host = at_one_host
    told = it.ask(f"once({GET.replace(HOST, other)!r})")
    assert told.startswith("HTTP/1.1 403") and '"wrong_host"' in told
    assert host.heads == []


@pytest.mark.parametrize(
    "field",
    [
        "X-HTTP-Method-Override: DELETE",
        "x_http_method_override: delete",
        "X-HTTP-Method: PUT",
        "X-Method-Override: PATCH",
        "X-Original-URL: /v2/x",
        "X-Rewrite-URL: /v2/x",
    ],
)
def test_what_a_field_makes_of_a_request_is_judged_too(
    at_one_host: tuple[JudgedProgram, Heard], field: str
) -> None:
    it, host = at_one_host
    told = it.ask(f"once({GET.replace(HOST, HOST + chr(13) + chr(10) + field)!r})")
    assert told.startswith("HTTP/1.1 403") and "no rule allows" in told
    assert host.heads == []


@pytest.mark.parametrize("said", ["DELETE, GET", "GET,DELETE", "delete;x"])
def test_each_word_of_a_field_that_names_a_method_is_judged(judging: Judging, said: str) -> None:
    """Of a list some servers take the first, as Express does, and some the last."""
    host = Heard()
    fields = f"{HOST}\r\nConnection: close\r\nX-HTTP-Method-Override: {said}"
    with judging.program(host, (HOST, f"!DELETE {HOST}")) as it:
        told = it.ask(f"once({GET.replace(HOST, fields)!r})")
        assert told.startswith("HTTP/1.1 403") and "denied by" in told
    assert host.heads == []


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("0\r\nX-HTTP-Method-Override: DELETE\r\n\r\n", "behind its body"),
        ("0\r\nx_original_url: /v2/x\r\n\r\n", "behind its body"),
        ("0\r\nHost: other.example.com\r\n\r\n", "behind its body"),
        ("zz\r\n", "no HTTP"),
    ],
)
def test_what_comes_behind_a_head_makes_no_other_request_of_it(
    judging: Judging, end: str, why: str
) -> None:
    heard = b""

    def serve(sock: socket.socket) -> None:
        nonlocal heard
        read_head(sock)
        while (data := sock.recv(65536)) and not heard.endswith(b"\r\n\r\n"):
            heard += data
            if heard.endswith(b"\r\n\r\n"):
                sock.sendall(OK)

    fields = f"{HOST}\r\nConnection: close\r\nTransfer-Encoding: chunked"
    post = GET.replace(HOST, fields).replace("GET", "POST") + "2\r\nab\r\n" + end
    with judging.program(serve, RULES) as it:
        told = it.ask(f"once({post!r})")
    assert told.startswith("HTTP/1.1 400") and why in told
    assert not heard.endswith(b"\r\n\r\n")


def test_bodies_stream_both_ways_in_chunks_with_trailers(judging: Judging) -> None:
    seen: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        seen.append(read_head(sock))
        with sock.makefile("rb") as file:
            for _ in range(2):  # each piece is answered before the next is sent
                size = int(file.readline(), 16)
                seen.append(file.read(size + 2))
                if len(seen) == 2:
                    sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                sock.sendall(b"3\r\n" + seen[-1][:1] * 3 + b"\r\n")
            seen.append(file.readline() + file.readline() + file.readline())
        sock.sendall(b"0\r\nX-Sum: 6\r\n\r\n")

    head = GET.replace("GET", "POST").replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n")
    with judging.program(serve, RULES) as it:
        assert it.ask("begin()") == 0
        chunk_a, chunk_b, end = "2\r\nab\r\n", "1\r\nc\r\n", "0\r\nX-T: v\r\n\r\n"
        it.ask(f"say(0, {head + chunk_a!r})")
        assert it.ask("until(0, 'aaa\\r\\n')").startswith("HTTP/1.1 200 OK")
        it.ask(f"say(0, {chunk_b!r})")
        assert it.ask("hear(0, 8)") == "3\r\nccc\r\n"
        it.ask(f"say(0, {end!r})")
        assert it.ask("hear(0, 15)") == "0\r\nX-Sum: 6\r\n\r\n"
    assert seen[1:] == [b"ab\r\n", b"c\r\n", b"0\r\nX-T: v\r\n\r\n"]


def test_what_is_said_before_the_answer_is_passed_on(judging: Judging) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert sock.recv(3) == b"abc"
        sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)

    extra = "\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    post = GET.replace("GET", "POST").replace("\r\n\r\n", extra)
    with judging.program(serve, RULES) as it:
        assert it.ask("begin()") == 0
        it.ask(f"say(0, {post!r})")
        assert it.ask("hear(0, 25)") == "HTTP/1.1 100 Continue\r\n\r\n"
        it.ask("say(0, 'abc')")
        assert it.ask("until(0, 'ok')").startswith("HTTP/1.1 103 Early Hints\r\nLink: </a>")


def test_what_goes_wrong_behind_a_continue_is_told(judging: Judging) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert sock.recv(3) == b"abc"
        sock.sendall(b"no answer\r\n\r\n")
        sock.recv(1)

    extra = "\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    post = GET.replace("GET", "POST").replace("\r\n\r\n", extra)
    with judging.program(serve, RULES) as it:
        assert it.ask("begin()") == 0
        it.ask(f"say(0, {post!r})")
        assert it.ask("hear(0, 25)") == "HTTP/1.1 100 Continue\r\n\r\n"
        it.ask("say(0, 'abc')")
        assert it.ask("rest(0)").startswith("HTTP/1.1 502 Bad Gateway")


def test_an_answer_to_head_and_one_without_a_body_end_where_they_do(judging: Judging) -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        OK,
    ]

    def serve(sock: socket.socket) -> None:
        for answer in answers:
            read_head(sock)
            sock.sendall(answer)

    with judging.program(serve, RULES) as it:
        assert it.ask("begin()") == 0
        for number, answer in enumerate(answers):
            it.ask(f"say(0, {GET.replace('GET', 'GET' if number else 'HEAD')!r})")
            assert it.ask(f"hear(0, {len(answer)})") == answer.decode()


def test_a_body_that_ends_with_its_connection_is_told_whole(judging: Judging) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")

    with judging.program(serve, RULES) as it:
        told = it.ask(f"once({GET!r})")
        assert "all of it" in told and told.endswith("0\r\n\r\n")
        older = it.ask(f"once({GET.replace('HTTP/1.1', 'HTTP/1.0')!r})")
        assert older.endswith("\r\n\r\nall of it")


def test_an_answer_that_comes_before_the_request_was_sent_is_told(judging: Judging) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
        while sock.recv(65536):
            pass

    post = GET.replace("GET", "POST").replace("\r\n\r\n", "\r\nContent-Length: 99999999\r\n\r\n")
    with judging.program(serve, RULES) as it:
        assert it.ask("begin()") == 0
        it.ask(f"say(0, {post!r} + 'x' * 1000)")
        assert it.ask("rest(0)").startswith("HTTP/1.1 413 Too Large")


def test_a_websocket_is_passed_on_once_its_request_was_allowed(judging: Judging) -> None:
    def serve(sock: socket.socket) -> None:
        if not (head := read_head(sock)):
            return  # of one that was refused: nothing is asked
        assert b"Upgrade: websocket" in head
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n")
        sock.sendall(b"Connection: Upgrade\r\n\r\nfirst")
        while data := sock.recv(100):
            sock.sendall(data.upper())

    ask = GET.replace("\r\n\r\n", "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    with judging.program(serve, RULES) as it:
        assert it.ask("begin()") == 0
        it.ask(f"say(0, {ask!r})")
        assert it.ask("until(0, 'first')").startswith("HTTP/1.1 101 Switching Protocols")
        for word in ("one", "two"):
            it.ask(f"say(0, {word!r})")
            assert it.ask("hear(0, 3)") == word.upper()
        assert "403" in it.ask(f"once({ask.replace('/v1/', '/v2/')!r})")


def test_plain_http_is_judged_as_well(judging: Judging) -> None:
    host = Heard()
    with judging.program(host, RULES, plain=True) as it:
        for port in (80,):
            assert it.ask(f"begin(port={port})") == 0
            it.ask(f"say(0, {GET!r})")
            assert it.ask("hear(0, 40)").endswith("ok")
            it.ask(f"say(0, {GET.replace('/v1', '/v2')!r})")
            assert it.ask("rest(0)").startswith("HTTP/1.1 403")
        # A program that says no more at all is answered still.
        assert it.ask(f"whole({HOST!r}, 80, {GET.encode()!r})").endswith("ok")
    assert len(host.heads) == 2


def test_a_host_that_nobody_vouches_for_is_not_asked(judging: Judging) -> None:
    host = Heard()
    with judging.program(host, [*RULES, "far.example.com/**"]) as it:
        # Its certificate has no such name.
        far = GET.replace(HOST, "far.example.com").replace("\r\n\r\n", "\r\nX: 1\r\n\r\n")
        told = it.ask(f"once({far!r}, 'far.example.com')")
        assert told.startswith("HTTP/1.1 502 Bad Gateway") and '"untrusted_host"' in told
    assert host.heads == []


def test_an_authority_is_for_one_sandbox_and_its_names_alone(judging: Judging) -> None:
    with judging.program(Heard(), RULES) as it, judging.program(Heard(), RULES) as other:
        assert it.ask("trusts(CA)") == ""
        found = it.ask(f"trusts({other.own.certificate!r})")
        assert "certificate" in found  # another sandbox's, of the same names

        def told() -> bool:
            return any("the program ended TLS" in row["reason"] for row in it.rows())

        eventually(told)
        assert it.keeper.faults == []
    with judging.program(Heard(), [*RULES, "far.example.com/**"], names=[HOST]) as it:
        assert it.ask("trusts(CA, 'far.example.com')") == "permitted subtree violation"


def test_what_the_program_of_a_machine_said_last_is_told_though_it_hangs_up_at_once(
    judging: Judging,
) -> None:
    """The alert and the end of its stream reach the relay in one: it was the first to say why."""
    stranger = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = stranger.wrap_bio(incoming, outgoing, server_hostname=HOST)
    relay = judging.keeper.pid
    with judging.program(Heard(), RULES, streams=True) as it, socket.socket(socket.AF_UNIX) as end:
        _, address = it.ask(f"resolve({HOST!r})")
        end.connect(it.program.sockets[0].getsockname())
        end.sendall(dialled.header(dialled.TCP4, socket.inet_aton(address), 443))
        with pytest.raises(ssl.SSLCertVerificationError):
            _shake_hands(tls, incoming, outgoing, end)
        os.kill(relay, signal.SIGSTOP)
        try:
            _say(end, outgoing.read())
            end.close()
        finally:
            os.kill(relay, signal.SIGCONT)
        eventually(lambda: all(row["ended"] for row in it.rows()))
        (row,) = it.rows()
        assert "the program ended TLS" in row["reason"]


def _shake_hands(
    tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, end: socket.socket
) -> None:
    frames = dialled.FrameParser()
    while True:
        try:
            tls.do_handshake()
            return
        except ssl.SSLWantReadError:
            _say(end, outgoing.read())
            for piece, _ in frames.feed(end.recv(65536)):
                incoming.write(piece)


def _say(end: socket.socket, data: bytes) -> None:
    if data:
        end.sendall(dialled.FRAME.pack(len(data)) + data)


def test_refusals_of_long_paths_at_once_are_told_and_end_nothing(judging: Judging) -> None:
    """However much there is to tell: a message of it that the host cannot read ends the terminator,
    and with it what it has of all sandboxes."""
    count = 12
    path = "/v2/" + "x" * 16000
    said = GET.replace("/v1/x", path)
    with judging.program(Heard(), RULES) as it, judging.program(Heard(), RULES) as other:
        pid = it.keeper.terminating.pid
        assert other.ask("begin()") == 0
        assert it.ask(f"[begin() for _ in range({count})]") == list(range(count))
        os.kill(pid, signal.SIGSTOP)  # so that it has all of them at once
        try:
            it.ask(f"[say(n, {said!r}) for n in range({count})]")
        finally:
            os.kill(pid, signal.SIGCONT)
        for n in range(count):
            assert it.ask(f"rest({n})").startswith("HTTP/1.1 403")
        eventually(lambda: len(it.requests()) == count)
        assert all(row["path"] == path[:400] for row in it.requests())
        other.ask(f"say(0, {GET!r})")
        assert other.ask("hear(0, 40)").endswith("ok")
        assert it.keeper.terminating.pid == pid


def test_what_was_moved_is_told_of_a_connection_that_other_rules_end(judging: Judging) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    with judging.program(Heard(answer), RULES) as it:
        assert it.admitted is not None
        it.ask("begin()")
        it.ask(f"say(0, {GET!r})")
        assert it.ask(f"len(hear(0, {len(answer)}))") == len(answer)
        it.admitted.set(it.table("other.example.com"))

        def ended() -> list[dict[str, Any]]:
            return [row for row in it.rows() if row["ended"] and "method" not in row]

        eventually(ended)
        (row,) = ended()
        assert (row["sent"], row["received"]) == (len(GET), len(answer))
        assert it.admitted.connections().totals["received"] == len(answer)


def test_no_path_and_rules_hold_up_who_reads_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of them there are: what takes long ends it, with what it has of all."""
    monkeypatch.setattr(terminating, "_HANG_SECONDS", 30.0)
    monkeypatch.setattr(terminating, "_LOOK_SECONDS", 1.0)
    rules = [HOST, *(f"!GET {HOST}/**{'a**' * 7}b{n:03}" for n in range(255))]
    path = "/" + "a" * 8000 + ";x/./" + "a" * 7900
    fields = f"{HOST}\r\nConnection: close"
    with made_judging(tmp_path) as own, own.program(Heard(), rules) as it:
        pid = it.keeper.terminating.pid
        told = it.ask(f"once({GET.replace('/v1/x', path).replace(HOST, fields)!r})")
        assert it.keeper.terminating.pid == pid
        assert str(told).startswith("HTTP/1.1 200 OK")


def test_who_begins_hundreds_of_connections_has_no_others_refused(
    judging: Judging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though who reads them does not come to it for a while."""
    monkeypatch.setattr(terminating, "_HANG_SECONDS", 600.0)
    count = 350
    host = Heard()
    with (
        judging.program(host, RULES, plain=True) as it,
        judging.program(host, RULES, plain=True) as other,
    ):
        pid = it.keeper.terminating.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            assert it.ask(f"len([begin(port=80) for _ in range({count})])") == count
            eventually(lambda: len(it.served._threads) >= count)
            assert other.ask("begin(port=80)") == 0
            eventually(lambda: other.served._threads)
        finally:
            os.kill(pid, signal.SIGCONT)
        other.ask(f"say(0, {GET!r})")
        assert str(other.ask("hear(0, 40)")).endswith("ok")
        it.ask(f"say({count - 1}, {GET!r})")
        assert str(it.ask(f"hear({count - 1}, 40)")).endswith("ok")


def test_rules_that_change_hold_for_what_is_open(judging: Judging) -> None:
    waits = threading.Semaphore(0)

    def serve(sock: socket.socket) -> None:
        while read_head(sock):
            waits.release()
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")

    with judging.program(serve, RULES) as it:
        assert it.admitted is not None
        assert it.ask("begin()") == 0
        it.ask(f"say(0, {GET!r})")
        assert waits.acquire(timeout=60)
        it.admitted.set(it.table(f"GET {HOST}/v2/**"))
        # In the middle of an answer, which Python 3.11.2 takes for its end.
        assert it.ask("attempt(rest, 0)") in (*ERRORS, "")
        assert it.ask("begin()") == 1
        it.ask(f"say(1, {GET!r})")
        assert it.ask("rest(1)").startswith("HTTP/1.1 403")
        assert it.ask("begin()") == 2
        it.admitted.set(it.table(HOST))  # whose requests are nobody's business
        assert it.ask("attempt(rest, 2)") in (*ERRORS, "")
        assert it.ask("trusts(CA)") != ""  # the host's own certificate


@pytest.mark.parametrize("who", ["terminator", "relay"])
def test_a_terminator_that_is_killed_ends_what_it_has_and_is_followed(
    tmp_path: Path, who: str
) -> None:
    """Whichever of the two it is."""
    reached = threading.Semaphore(0)

    def serve(sock: socket.socket) -> None:
        while read_head(sock):
            reached.release()
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")

    with made_judging(tmp_path) as own, own.program(serve, RULES) as it:
        assert it.ask("begin()") == 0
        it.ask(f"say(0, {GET!r})")
        assert reached.acquire(timeout=60)
        killed = it.keeper.terminating if who == "terminator" else it.keeper
        pid = killed.pid
        os.kill(pid, signal.SIGKILL)
        told = it.ask("attempt(rest, 0)")
        assert told in (*ERRORS, "") or not str(told).endswith("ok"), "the rest never came"
        eventually(lambda: killed.pid not in (0, pid))

        def answered() -> bool:
            return it.ask("attempt(begin)") is not None and "ok" in str(
                it.ask(f"say(len(kept) - 1, {GET!r}) or attempt(hear, len(kept) - 1, 40)")
            )

        # The same authority: the program's certificate verifies the next one's.
        eventually(answered)
        ended = [row["reason"] for row in it.rows() if row["ended"] and row["reason"]]
        # A relay may have had no time to tell of the connection.
        assert who == "relay" or "what read its requests is gone" in ended
