"""What a program says first, in one piece, in many, and wrongly."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.egress.relay import hello


def client_hello(name: str | None, record: int = 1 << 14) -> bytes:
    """As OpenSSL says it, in records of that size."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    said = outgoing.read()
    body = said[5:]
    parts = [body[at : at + record] for at in range(0, len(body), record)]
    return b"".join(said[:3] + len(part).to_bytes(2, "big") + part for part in parts)


@pytest.mark.parametrize("record", [1 << 14, 100, 40])
def test_the_name_is_read_whole_over_records_and_segments(record: int) -> None:
    said = client_hello("api.example.com", record)
    assert hello.server_name(said) == ("api.example.com", "")
    for end in range(0, len(said) - 1, 7):
        assert hello.server_name(said[:end]) is hello.MORE


def test_one_in_very_many_records_is_refused() -> None:
    first = hello.server_name(client_hello("api.example.com", 1))
    assert first is not None
    assert "records" in first.wrong


def test_no_name() -> None:
    assert hello.server_name(client_hello(None)) == (None, "")


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (b"\x15\x03\x01\0\2ab", "no TLS"),
        (b"\x16\x02\x01\0\2ab", "version"),
        (b"\x16\x03\x01\xff\xffab", "length"),
        (b"\x16\x03\x01\0\0", "length"),
        (b"\x16\x03\x01\0\4\2\0\0\0", "no ClientHello"),
        (b"\x16\x03\x01\0\4\1\0\xff\xff", "over"),
        (b"\x16\x03\x01\0\6\1\0\0\2ab", "early"),
    ],
)
def test_what_is_wrong_is_said(said: bytes, wrong: str) -> None:
    first = hello.server_name(said)
    assert first is not None
    assert wrong in first.wrong


@pytest.mark.parametrize("name", [b"\0\1\0\x0f", b"\0\0\0\0", b"\0\0\0\x10"])
def test_an_odd_name_is_refused(name: bytes) -> None:
    """Of another kind, empty, or longer than its list."""
    said = client_hello("api.example.com")
    kind = b"\0\0\0\x14\0\x12\0\0\x0f"
    assert said.count(kind) == 1
    first = hello.server_name(said.replace(kind, kind[:5] + b"\x12" + name[1:]))
    assert first is not None
    assert first.wrong


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_judged(data: bytes, hello_first: bool) -> None:
    said = client_hello("a.b")[:60] + data if hello_first else data
    assert hello.server_name(said) is hello.MORE or hello.server_name(said)
    assert hello.host(data) is hello.MORE or hello.host(data)


GET = b"GET / HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (GET + b"Host: a.example\r\n\r\n", "a.example"),
        (GET + b"Accept: */*\r\nHOST:A.example:80 \r\n\r\nbody", "a.example"),
        (b"GET http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example"),
        (b"GET / HTTP/1.0\nHost: a.example\n\n", "a.example"),
        (b"GET http://a.example./ HTTP/1.1\r\nHost: a.example.:80\r\n\r\n", "a.example"),
    ],
)
def test_the_host_of_a_request(said: bytes, name: str) -> None:
    assert hello.host(said) == (name, "")


@pytest.mark.parametrize(
    "said",
    [
        GET + b"\r\n",
        GET + b"Host: a.example\r\nHost: b.example\r\n\r\n",
        GET + b"Host : a.example\r\n\r\n",
        GET + b"X: 1\r\n Host: a.example\r\n\r\n",
        b"GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"GET http://b.example?@a.example HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"CONNECT b.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01",
        b"SSH-2.0-x\r\n",
        b"GET / HTTP/1.1 x\r\nHost: a.example\r\n\r\n",
        GET + b"X: " + b"a" * hello.MAX_HEAD,
        GET + b"X: 1\rHost: b.example\r\nHost: a.example\r\n\r\n",
        b"GET / HTTP/1.1\rHost:b.example\r\nHost: a.example\r\n\r\n",
    ],
)
def test_what_names_no_one_host_is_refused(said: bytes) -> None:
    first = hello.host(said)
    assert first is not None
    assert first.wrong


@pytest.mark.parametrize("said", [b"", b"GE", GET, GET + b"Host: a.example\r\n"])
def test_half_a_request_is_waited_for(said: bytes) -> None:
    assert hello.host(said) is hello.MORE
