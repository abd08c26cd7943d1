"""Servers that mean harm: slow, endless, or larger than they seem."""

import gzip
import socket
import threading
import zlib
from collections.abc import Callable, Sequence

import pytest
from tests.unit.capability.fetch.authority import Authority
from tests.unit.capability.fetch.servers import Server, fetcher, says

from agentd.capability.fetch import lookup
from agentd.capability.fetch.fetcher import Fetcher, FetchRequest
from agentd.model.capability import CallFailed

Serve = Callable[..., Server]
OK = b"HTTP/1.1 200 OK\r\n"
BOMB = 64 << 20


def code(request: FetchRequest, fetch: Fetcher | None = None) -> str:
    with pytest.raises(CallFailed) as caught:
        (fetch or fetcher()).fetch(request)
    return caught.value.code


def drips(start: bytes, drop: bytes = b"a", pause: float = 0.1) -> Callable[..., None]:
    """``start`` at once, then a little at a time for ever."""

    def answer(server: Server, connected: socket.socket, request: bytes) -> None:
        connected.sendall(start)
        while not server.stopping.wait(pause):
            connected.sendall(drop)

    return answer


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX: ",
        OK + b"\r\n",
        OK + b"Content-Length: 1000000\r\n\r\n",
    ],
)
def test_a_slow_drip_ends_with_the_time_limit(serve: Serve, start: bytes) -> None:
    server = serve(drips(start))
    assert code(FetchRequest(url=server.url(), timeout=0.5)) == "timeout"


def test_a_server_that_says_nothing_ends_with_the_time_limit(serve: Serve) -> None:
    server = serve(lambda server, connected, request: server.stopping.wait())
    assert code(FetchRequest(url=server.url(), timeout=0.3)) == "timeout"


def test_a_slow_handshake_ends_with_the_time_limit(serve: Serve, authority: Authority) -> None:
    """The client's hello is read as a request that never ends: no answer comes."""
    server = serve(says())
    url = f"https://127.0.0.1:{server.port}/"
    assert code(FetchRequest(url=url, timeout=0.3)) == "timeout"


def test_a_server_that_does_not_read_ends_with_the_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        request = FetchRequest(url=url, method="POST", body=bytes(8 << 20), timeout=0.5)
        assert code(request) == "timeout"


def test_a_name_server_that_does_not_answer_ends_with_the_time_limit() -> None:
    answer = threading.Event()

    def hanging(host: str) -> Sequence[str]:
        answer.wait()
        return []

    try:
        fetch = Fetcher(resolver=hanging)
        assert code(FetchRequest(url="http://slow.test/", timeout=0.2), fetch) == "timeout"
    finally:
        answer.set()


def test_only_so_many_names_are_looked_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer takes no more threads than that."""
    answer, slots = threading.Event(), threading.BoundedSemaphore(2)
    asked: list[str] = []

    def hanging(host: str) -> Sequence[str]:
        asked.append(host)
        answer.wait()
        return []

    monkeypatch.setattr(lookup, "_slots", slots)
    request = FetchRequest(url="http://slow.test/", timeout=0.2)
    try:
        for _ in range(100):
            assert code(request, Fetcher(resolver=hanging)) == "timeout"
            if len(asked) == 2:
                break
        assert code(request, Fetcher(resolver=hanging)) == "timeout"
        assert len(asked) == 2
    finally:
        answer.set()
        for _ in range(2):  # until both have ended
            assert slots.acquire(timeout=120)


def test_a_name_of_too_many_addresses_has_none() -> None:
    many = Fetcher(resolver=lambda host: [f"192.0.2.{number}" for number in range(65)])
    assert code(FetchRequest(url="http://many.test/"), many) == "resolve_failed"


def test_redirects_share_one_time_limit(serve: Serve) -> None:
    def answer(server: Server, connected: socket.socket, request: bytes) -> None:
        server.stopping.wait(0.2)
        connected.sendall(b"HTTP/1.1 302 x\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")

    server = serve(answer)
    assert code(FetchRequest(url=server.url(), timeout=0.7, max_redirects=10)) == "timeout"
    assert len(server.requests) < 6


@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (OK, b"X: " + b"a" * 1000 + b"\r\n"),
        (OK + b"X: ", b"a" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50),
        (b"HTTP/1.1 ", b"2" * 1000),
    ],
)
def test_endless_headers_are_bounded(serve: Serve, start: bytes, drop: bytes) -> None:
    server = serve(drips(start, drop, pause=0))
    assert code(FetchRequest(url=server.url())) == "bad_response"


def test_many_headers_are_refused(serve: Serve) -> None:
    server = serve(says(headers=[f"X-{number}: a" for number in range(201)]))
    assert code(FetchRequest(url=server.url())) == "bad_response"


@pytest.mark.parametrize("start", [OK + b"\r\n", OK + b"Content-Length: 999999999999\r\n\r\n"])
def test_an_endless_body_is_cut(serve: Serve, start: bytes) -> None:
    server = serve(drips(start, b"a" * 4096, pause=0))
    pieces: list[bytes] = []
    got = fetcher().fetch(FetchRequest(url=server.url(), max_bytes=100_000), pieces.append)
    assert got.truncated
    assert got.body == b"a" * 100_000 == b"".join(pieces)


def test_an_endless_chunked_body_is_cut(serve: Serve) -> None:
    start = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    server = serve(drips(start, b"4\r\nabcd\r\n" * 100, pause=0))
    got = fetcher().fetch(FetchRequest(url=server.url(), max_bytes=10))
    assert (got.body, got.truncated) == (b"abcdabcdab", True)


def test_a_body_of_just_the_bound_is_whole(serve: Serve) -> None:
    server = serve(says(b"a" * 100))
    got = fetcher().fetch(FetchRequest(url=server.url(), max_bytes=100))
    assert (len(got.body), got.truncated) == (100, False)


def deflate(data: bytes, window: int) -> bytes:
    packer = zlib.compressobj(wbits=window)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("gzip", gzip.compress(b"text" * 1000)),
        ("x-gzip", gzip.compress(b"text" * 1000)),
        ("deflate", deflate(b"text" * 1000, 15)),
        ("deflate", deflate(b"text" * 1000, -15)),
        ("identity", b"text" * 1000),
    ],
    ids=["gzip", "x-gzip", "zlib", "deflate", "identity"],  # a gzip header holds the time
)
def test_a_compressed_body_is_undone(serve: Serve, name: str, packed: bytes) -> None:
    server = serve(says(packed, headers=[f"Content-Encoding: {name}"]))
    got = fetcher().fetch(FetchRequest(url=server.url()))
    assert (got.body, got.decoded, got.truncated) == (b"text" * 1000, True, False)


@pytest.mark.parametrize("extra", [0, 1, 100, 258])
def test_the_last_of_a_compressed_body_is_not_kept_back(serve: Serve, extra: int) -> None:
    """All of it is taken in before all of it is out, where that is a little over 64 KiB."""
    data = bytes((64 << 10) + extra)
    server = serve(says(deflate(data, -15), headers=["Content-Encoding: deflate"]))
    got = fetcher().fetch(FetchRequest(url=server.url()))
    assert (len(got.body), got.truncated) == (len(data), False)


def test_every_member_of_a_gzip_body_is_undone(serve: Serve) -> None:
    packed = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two") + bytes(9)
    server = serve(says(packed, headers=["Content-Encoding: gzip"]))
    assert fetcher().fetch(FetchRequest(url=server.url())).body == b"one two"
    many = serve(says(gzip.compress(b"") * 2000, headers=["Content-Encoding: gzip"]))
    assert code(FetchRequest(url=many.url())) == "bad_response"


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("gzip", gzip.compress(b"text" * 1000)),
        ("deflate", deflate(b"text" * 1000, 15)),
        ("deflate", deflate(b"text" * 1000, -15)),
    ],
    ids=["gzip", "zlib", "deflate"],
)
def test_a_compressed_body_that_is_cut_short_is_told(
    serve: Serve, name: str, packed: bytes
) -> None:
    server = serve(says(packed[:-3], headers=[f"Content-Encoding: {name}"]))
    assert code(FetchRequest(url=server.url())) == "bad_response"


@pytest.mark.parametrize("name", ["br", "gzip, gzip", "zstd"])
def test_another_encoding_is_left_as_it_came(serve: Serve, name: str) -> None:
    server = serve(says(b"\x01\x02", headers=[f"Content-Encoding: {name}"]))
    got = fetcher().fetch(FetchRequest(url=server.url()))
    assert (got.body, got.decoded) == (b"\x01\x02", False)


def test_a_bomb_is_cut_before_it_is_there(serve: Serve) -> None:
    import tracemalloc

    packed = gzip.compress(bytes(BOMB))
    server = serve(says(packed, headers=["Content-Encoding: gzip"]))
    tracemalloc.start()
    try:
        got = fetcher().fetch(FetchRequest(url=server.url(), max_bytes=1000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(got.body), got.truncated) == (1000, True)
    assert peak < BOMB // 8


def test_what_decodes_to_nothing_for_ever_is_cut(serve: Serve) -> None:
    """Empty stored blocks: bytes on the wire, none in the body."""
    empty = b"\x00\x00\x00\xff\xff"
    start = OK + b"Content-Encoding: deflate\r\n\r\n\x78\x9c"
    server = serve(drips(start, empty * 1000, pause=0))
    got = fetcher().fetch(FetchRequest(url=server.url(), max_bytes=1000))
    assert (got.body, got.truncated) == (b"", True)


def test_broken_compression_is_told(serve: Serve) -> None:
    server = serve(says(b"not gzip at all", headers=["Content-Encoding: gzip"]))
    assert code(FetchRequest(url=server.url())) == "bad_response"


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 999999 x\r\n\r\n",
        OK + b"Content-Length: 5\r\n\r\nab",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"X: a\0b\r\n\r\n",
        b"",
    ],
)
def test_what_is_not_http_is_told(serve: Serve, data: bytes) -> None:
    server = serve(lambda server, connected, request: connected.sendall(data))
    assert code(FetchRequest(url=server.url())) == "bad_response"
