"""Which proxy an environment names for a place."""

import pytest

from agentd.egress.destinations import Barred, Destinations, Place
from agentd.egress.proxies import Proxies, Proxy

_BOTH = {"HTTPS_PROXY": "http://secure.example:8", "http_proxy": "plain.example"}


def test_each_scheme_has_its_own() -> None:
    proxies, place = Proxies(_BOTH), Place("a.example", 443)
    assert proxies.of("https", place) == Proxy(Place("secure.example", 8))
    assert proxies.of("http", place) == Proxy(Place("plain.example", 80))
    assert proxies.of("", place) is None
    assert Proxies({}).of("https", place) is None


def test_who_asks_is_said_as_the_url_has_it() -> None:
    proxies = Proxies({"HTTPS_PROXY": "http://me:w%40rd@[::1]:3128"})
    assert proxies.of("https", Place("a", 1)) == Proxy(Place("::1", 3128), "bWU6d0ByZA==")


@pytest.mark.parametrize(
    ("none", "places"),
    [
        ("*", "a.example:1"),
        ("a.example", "a.example:1 A.Example.:1 b.a.example:2 !ba.example:1 !example:1"),
        (".a.example", "b.a.example:1 !a.example:1"),
        ("*.a.example", "b.a.example:1 !a.example:1"),
        ("a.example:5", "a.example:5 b.a.example:5 !a.example:6"),
        ("x, 10.0.0.0/8", "10.1.2.3:1 !11.0.0.1:1 !a.example:1"),
        ("10.1.2.3", "10.1.2.3:1 !10.1.2.4:1"),
        ("10.1.2.3:5", "10.1.2.3:5 !10.1.2.3:6"),
        ("[2001:db8::1]:5", "2001:db8::1:5 !2001:db8::1:6"),
        ("2001:db8::/32", "2001:db8::1:5 !2001:db9::1:5"),
        (", ,", "!a.example:1"),
    ],
)
def test_no_proxy_is_for_these(none: str, places: str) -> None:
    proxies = Proxies({**_BOTH, "NO_PROXY": none})
    for text in places.split():
        host, _, port = text.removeprefix("!").rpartition(":")
        found = proxies.of("https", Place(host, int(port)))
        assert (found is None) != text.startswith("!"), (none, text)


@pytest.mark.parametrize(
    "host",
    [
        *("10.0.0.1 HTTP/1.1\r\nX", "a b.example", "\ufffd.example", "a:1.example"),
        # Which a proxy's library may take for addresses of loopback.
        *("127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.0x1", "0x7F.1"),
        *("localhost..", "127.0.0.1..", "127.1..", "a..b", ".a"),
    ],
)
def test_what_is_no_name_is_passed_on_to_no_proxy(host: str) -> None:
    with pytest.raises(Barred, match="is no name"):
        Destinations([]).check_passed_on(Place(host, 443))


@pytest.mark.parametrize("host", ["localhost", "api.localhost", "API.LocalHost."])
def test_no_proxy_is_asked_for_its_own_machine(host: str) -> None:
    with pytest.raises(Barred, match="is this machine itself"):
        Destinations([]).check_passed_on(Place(host, 443))
    Destinations([Place(host, 443)]).check_passed_on(Place(host, 443))


@pytest.mark.parametrize("host", ["registry.example", "1.example", "0x7f.a", "a.0xg", "x0x1"])
def test_a_name_with_numbers_in_it_is_one(host: str) -> None:
    Destinations([]).check_passed_on(Place(host, 443))
