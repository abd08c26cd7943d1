import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.capability.fetch import url
from agentd.model.capability import CallFailed


def refused(text: str) -> bool:
    with pytest.raises(CallFailed) as caught:
        url.parse(text)
    return caught.value.code == "url_refused"


@pytest.mark.parametrize(
    ("text", "host", "port", "target"),
    [
        ("http://example.org", "example.org", 80, "/"),
        ("HTTPS://EXAMPLE.org./a?b=c#d", "example.org", 443, "/a?b=c"),
        ("http://example.org:8080?x", "example.org", 8080, "/?x"),
        ("https://[2001:DB8::1]:8443/", "2001:db8::1", 8443, "/"),
        ("http://192.0.2.1/", "192.0.2.1", 80, "/"),
        ("http://bücher.example/ü?ü", "xn--bcher-kva.example", 80, "/%C3%BC?%C3%BC"),
        ("http://a_b.example/%41@", "a_b.example", 80, "/%41@"),
        ("http://1.2.example/", "1.2.example", 80, "/"),
    ],
)
def test_url_is_read(text: str, host: str, port: int, target: str) -> None:
    read = url.parse(text)
    assert (read.host, read.port, read.target) == (host, port, target)


@pytest.mark.parametrize(
    "text",
    [
        *("", "example.org", "//example.org/", "ftp://example.org/", "file:///etc/passwd"),
        *("http:example.org", "http:///path", "http://", "http://:80/", "http://a:/", "http://a:b/"),
        *("http://a:0/", "http://a:65536/", "http://a:999999/", "http://a:8\uff10/"),
        *("http://1@2/", "http://user:word@example.org/", "http://@example.org/"),
        *("http://good.example\\@evil.example/", "http:\\\\example.org/", "http://a/\\b"),
        *("http://exa\tmple.org/", "http://example.org/\r\nX: y", "http://a b/", " http://a/"),
        *("http://a\0.example/", "http://a\u00a0.example/", "http://a/\u2028", "http://a/\ud800"),
        *("http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://127.1/"),
        *("http://0177.0.0.1/", "http://127.0.0.01/", "http://1.2.3.4.5/", "http://0/"),
        *("http://256.1.1.1/", "http://1.0x/", "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11/", "http://127。0。0。1.5/"),
        *("http://[::1/", "http://::1/", "http://[::1]x/", "http://[fe80::1%25eth0]/"),
        *("http://[v1.x]/", "http://[1.2.3.4]/", "http://%31%32%37.0.0.1/", "http://a..b/"),
        *("http://-a.example/", "http://a-/", "http://" + "a" * 64 + ".example/", "http://.a/"),
        *("http://" + "a." * 130 + "example/", "http\u017f://a/", "http://ex*mple.org/"),
        "http://a/" + "x" * 8192,
    ],
)  # fmt: skip
def test_other_readings_of_a_url_are_refused(text: str) -> None:
    assert refused(text)


def test_an_ideographic_full_stop_is_a_dot() -> None:
    assert url.parse("http://127。0。0。1/").host == "127.0.0.1"


def test_a_mapped_address_stays_one() -> None:
    assert ":" in url.parse("http://[::ffff:127.0.0.1]/").host


@pytest.mark.parametrize(
    ("location", "joined"),
    [
        ("/c", "http://example.org/c"),
        ("c?d", "http://example.org/a/c?d"),
        ("?d", "http://example.org/a/b?d"),
        ("../../../x", "http://example.org/x"),
        ("//other.example/x", "http://other.example/x"),
        ("https://other.example", "https://other.example/"),
        ("#there", "http://example.org/a/b"),
    ],
)
def test_location_is_joined(location: str, joined: str) -> None:
    assert url.join(url.parse("http://example.org/a/b"), location).text == joined


@pytest.mark.parametrize(
    "location",
    [
        *("//user@other.example/", "/\\other.example", "\\\\other.example", "/\t/other.example"),
        *("file:///etc/passwd", "http:/\r\nSet-Cookie: a", "//[::1", "javascript:alert(1)", "///x"),
        *("//2130706433/", "http://0x7f.1/"),
    ],
)
def test_other_readings_of_a_location_are_refused(location: str) -> None:
    with pytest.raises(CallFailed) as caught:
        url.join(url.parse("http://example.org/a/b"), location)
    assert caught.value.code == "url_refused"


@given(st.text(max_size=40), st.sampled_from(["", "http://", "https://", "http://a/", "http://["]))
def test_what_is_read_is_plain_and_reads_the_same_again(text: str, start: str) -> None:
    try:
        read = url.parse(start + text)
    except CallFailed as error:
        assert error.code == "url_refused"
        return
    assert read.text.isascii()
    assert read.text.isprintable()
    assert not set(read.host) & set("/?#@\\% ")
    assert url.parse(read.text) == read
