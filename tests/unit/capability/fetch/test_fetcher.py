"""Requests as servers see them, answers, redirects and TLS."""

import ssl
from collections.abc import Callable

import pytest
from tests.unit.capability.fetch.authority import Authority
from tests.unit.capability.fetch.servers import Server, fetcher, redirects, says

from agentd.capability.fetch.fetcher import FetchRequest
from agentd.model.capability import CallFailed
from agentd.model.errors import InvalidInput

Serve = Callable[..., Server]


def test_a_request_goes_out_and_its_answer_comes_back(serve: Serve) -> None:
    headers = ["X-Two: a", "x-two: b", "Set-Cookie: a=1", "Set-Cookie: b=2"]
    server = serve(says(b"hello", status="201 Created", headers=headers))
    pieces: list[bytes] = []
    request = FetchRequest(
        url=server.url("/p?q#f", "name.test"),
        method="POST",
        headers={"X-One": "1", "Content-Type": "text/plain"},
        body=b"ping",
    )
    got = fetcher({"name.test": ["127.0.0.1"]}).fetch(request, pieces.append)
    assert (got.status, got.body, got.truncated) == (201, b"hello", False)
    assert got.url == server.url("/p?q", "name.test")
    assert got.address == "127.0.0.1"
    assert got.headers["x-two"] == "a, b"
    assert got.headers["set-cookie"] == "a=1\nb=2"
    assert b"".join(pieces) == b"hello"
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "post /p?q http/1.1"
    assert lines.count(f"host: name.test:{server.port}") == 1
    assert lines.count("content-length: 4") == 1
    assert lines.count("x-one: 1") == 1
    assert body == b"ping"


def test_head_has_no_body(serve: Serve) -> None:
    server = serve(says(headers=["Content-Length: 50"], length=False))
    got = fetcher().fetch(FetchRequest(url=server.url(), method="HEAD"))
    assert (got.body, got.headers["content-length"]) == (b"", "50")


def test_a_get_with_a_body_is_refused() -> None:
    with pytest.raises(InvalidInput):
        fetcher().fetch(FetchRequest(url="http://127.0.0.1/", body=b"x"))


@pytest.mark.parametrize(
    "headers",
    [
        *({"X": "a\r\nY: b"}, {"X": "a\nb"}, {"X": "a\0"}, {"X\r\nY": "b"}, {"X Y": "b"}),
        *({"": "b"}, {"X:": "b"}, {"X": "\u0100"}, {"Host": "evil.test"}, {"hOST": "evil.test"}),
        *({"Content-Length": "0"}, {"Transfer-Encoding": "chunked"}, {"Connection": "keep-alive"}),
        *({"Upgrade": "h2c"}, {"TE": "trailers"}, {"Expect": "100-continue"}),
        *({"Proxy-Authorization": "x"}, {"X": "a", "x": "b"}, {"X": "a" * 20000}),
        {f"X-{number}": "a" for number in range(65)},
    ],
)
def test_headers_that_would_end_or_mend_the_request_are_refused(
    serve: Serve, headers: dict[str, str]
) -> None:
    server = serve(says())
    with pytest.raises(CallFailed) as caught:
        fetcher().fetch(FetchRequest(url=server.url(), headers=headers))
    assert caught.value.code == "header_refused"
    assert server.connections == 0


@pytest.mark.parametrize(
    ("status", "method", "then", "body"),
    [
        ("301 x", "POST", "GET", b""),
        ("302 x", "POST", "GET", b""),
        ("302 x", "PUT", "PUT", b"data"),
        ("303 x", "PUT", "GET", b""),
        ("303 x", "HEAD", "HEAD", b""),
        ("307 x", "POST", "POST", b"data"),
        ("308 x", "PUT", "PUT", b"data"),
    ],
)
def test_what_a_redirect_makes_of_a_request(
    serve: Serve, status: str, method: str, then: str, body: bytes
) -> None:
    target = serve(says(b"there"))
    first = serve(redirects(target.url("/there"), status))
    sent = b"" if method == "HEAD" else b"data"
    got = fetcher().fetch(FetchRequest(url=first.url(), method=method, body=sent))
    assert got.redirects == (first.url(),)
    assert got.url == target.url("/there")
    assert target.requests[0].startswith(then.encode() + b" /there ")
    assert target.requests[0].partition(b"\r\n\r\n")[2] == body


def test_credentials_stay_with_their_origin(serve: Serve) -> None:
    other = serve(says())
    first = serve(redirects(other.url()))
    headers = {
        "Authorization": "Bearer s3cret",
        "Cookie": "s3cret",
        "X-Api-Key": "s3cret",
        "Accept": "text/plain",
    }
    fetcher().fetch(FetchRequest(url=first.url(), headers=headers))
    assert first.requests[0].count(b"s3cret") == 3
    assert b"s3cret" not in other.requests[0]
    assert b"accept: text/plain" in other.requests[0].lower()


def test_credentials_go_along_within_an_origin(serve: Serve) -> None:
    def answer(server: Server, connected: object, request: bytes) -> None:
        (redirects("/b") if request.startswith(b"GET /a ") else says())(server, connected, request)

    server = serve(answer)
    fetcher().fetch(FetchRequest(url=server.url("/a"), headers={"Authorization": "s3cret"}))
    assert [b"s3cret" in request for request in server.requests] == [True, True]


def test_a_redirect_in_bytes_that_are_no_ascii_is_followed_as_it_is(serve: Serve) -> None:
    def answer(server: Server, connected: object, request: bytes) -> None:
        (redirects("/\u4e2d\xad?q=\xe9") if len(server.requests) == 1 else says(b"there"))(
            server, connected, request
        )

    server = serve(answer)
    got = fetcher().fetch(FetchRequest(url=server.url()))
    assert (got.body, got.url) == (b"there", server.url("/%E4%B8%AD%C2%AD?q=%C3%A9"))
    assert server.requests[1].startswith(b"GET /%E4%B8%AD%C2%AD?q=%C3%A9 ")


def test_cookies_are_not_kept(serve: Serve) -> None:
    server = serve(says(headers=["Set-Cookie: a=1"]))
    fetch = fetcher()
    for _ in range(2):
        fetch.fetch(FetchRequest(url=server.url()))
    assert b"cookie" not in server.requests[1].lower()


def test_redirects_are_bounded(serve: Serve) -> None:
    server = serve(redirects("/again"))
    with pytest.raises(CallFailed) as caught:
        fetcher().fetch(FetchRequest(url=server.url(), max_redirects=3))
    assert caught.value.code == "too_many_redirects"
    assert len(server.requests) == 4


def test_no_redirects_gives_the_redirect_itself(serve: Serve) -> None:
    server = serve(redirects("/again"))
    got = fetcher().fetch(FetchRequest(url=server.url(), max_redirects=0))
    assert (got.status, got.headers["location"]) == (302, "/again")


def test_tls_checks_the_name_while_the_address_is_pinned(
    serve: Serve, authority: Authority
) -> None:
    server = serve(says(b"safe"), authority.server)
    fetch = fetcher({"good.test": ["127.0.0.1"], "evil.test": ["127.0.0.1"]}, verify=authority.ca)
    authority.hellos.clear()
    assert fetch.fetch(FetchRequest(url=server.url(host="good.test"))).body == b"safe"
    assert authority.hellos == ["good.test"]
    assert fetch.fetch(FetchRequest(url=server.url())).body == b"safe"
    with pytest.raises(CallFailed) as caught:
        fetch.fetch(FetchRequest(url=server.url(host="evil.test")))
    assert caught.value.code == "tls_failed"
    assert len(server.requests) == 2


def test_an_unknown_authority_is_not_trusted(serve: Serve, authority: Authority) -> None:
    server = serve(says(b"safe"), authority.server)
    with pytest.raises(CallFailed) as caught:
        fetcher({"good.test": ["127.0.0.1"]}).fetch(FetchRequest(url=server.url(host="good.test")))
    assert caught.value.code == "tls_failed"
    assert server.requests == []


def test_old_tls_is_refused(serve: Serve, authority: Authority) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.warns(DeprecationWarning):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(CallFailed) as caught:
        fetcher(verify=authority.ca).fetch(FetchRequest(url=serve(says(), old).url()))
    assert caught.value.code == "tls_failed"


def test_https_does_not_become_http(serve: Serve, authority: Authority) -> None:
    plain = serve(says(b"secret"))
    server = serve(redirects(plain.url()), authority.server)
    with pytest.raises(CallFailed) as caught:
        fetcher(verify=authority.ca).fetch(FetchRequest(url=server.url()))
    assert caught.value.code == "redirect_refused"
    assert plain.connections == 0


def test_what_cannot_be_had_says_why(serve: Serve) -> None:
    server = serve(says())
    server.close()
    for url, code in (
        ("http://nowhere.test/", "resolve_failed"),
        (server.url(), "connect_failed"),
    ):
        with pytest.raises(CallFailed) as caught:
            fetcher().fetch(FetchRequest(url=url))
        assert caught.value.code == code


def test_the_next_address_is_tried(serve: Serve) -> None:
    server = serve(says(b"second"))
    fetch = fetcher({"two.test": ["127.0.0.7", "127.0.0.1"]})
    got = fetch.fetch(FetchRequest(url=server.url(host="two.test")))
    assert (got.body, got.address) == (b"second", "127.0.0.1")
