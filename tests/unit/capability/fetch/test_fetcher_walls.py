"""What is refused: where a fetch may go, and that it goes to where it was checked to."""

from collections.abc import Callable, Sequence

import pytest
from tests.unit.capability.fetch.servers import Server, fetcher, redirects, says

from agentd.capability.fetch.fetcher import Fetcher, FetchRequest
from agentd.model.capability import CallFailed
from agentd.model.errors import InvalidInput

Serve = Callable[..., Server]


def code(fetch: Fetcher, request: FetchRequest) -> str:
    with pytest.raises(CallFailed) as caught:
        fetch.fetch(request)
    return caught.value.code


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::7f00:1]"),  # noqa: S104
        *("127。0。0。1", "169.254.169.254", "[fd00:ec2::254]", "[64:ff9b::7f00:1]"),
    ],
)
def test_a_local_service_is_not_reached_by_its_address(serve: Serve, host: str) -> None:
    server = serve(says(b"secret"))
    request = FetchRequest(url=f"http://{host}:{server.port}/")
    assert code(Fetcher(ports=None), request) == "address_refused"
    assert server.connections == 0


def test_a_local_service_is_not_reached_by_a_name(serve: Serve) -> None:
    server = serve(says(b"secret"))
    for answer in (["127.0.0.1"], ["1.1.1.1", "127.0.0.1"], ["127.0.0.1", "1.1.1.1"], ["::1"]):
        fetch = fetcher({"evil.test": answer}, allowed_networks=())
        assert code(fetch, FetchRequest(url=server.url(host="evil.test"))) == "address_refused"
    assert server.connections == 0


def test_a_private_address_is_not_told() -> None:
    fetch = fetcher({"intern.test": ["10.11.12.13"]})
    with pytest.raises(CallFailed) as caught:
        fetch.fetch(FetchRequest(url="http://intern.test/"))
    assert "10.11" not in str(caught.value.as_dict())


def test_a_name_that_answers_differently_the_second_time_is_asked_once(serve: Serve) -> None:
    """DNS rebinding: the check and the connection see the same answer."""
    inside, outside = serve(says(b"secret")), serve(says(b"public"))
    asked: list[str] = []

    def rebinding(host: str) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.2"] if len(asked) == 1 else ["127.0.0.1"]

    fetch = Fetcher(allowed_networks=["127.0.0.2/32"], ports=None, resolver=rebinding)
    url = f"http://rebinding.test:{inside.port}/"
    # Nothing listens on 127.0.0.2: had it been resolved again, the server would have answered.
    assert code(fetch, FetchRequest(url=url)) == "connect_failed"
    assert asked == ["rebinding.test"]
    assert (inside.connections, outside.connections) == (0, 0)


def test_each_redirect_is_resolved_and_checked_again(serve: Serve) -> None:
    target = serve(says(b"secret"))
    answers = iter([["127.0.0.1"], ["127.0.0.3"]])
    first = serve(redirects("/again"))
    fetch = Fetcher(
        allowed_networks=["127.0.0.1/32"], ports=None, resolver=lambda host: next(answers)
    )
    assert code(fetch, FetchRequest(url=first.url(host="rebinding.test"))) == "address_refused"
    assert (first.connections, target.connections) == (1, 0)


@pytest.mark.parametrize(
    "location",
    [
        *("http://169.254.169.254/", "http://[::1]:{port}/", "http://10.0.0.1/"),
        *("http://127.0.0.9:{port}/", "//127.0.0.9:{port}/"),
    ],
)
def test_a_redirect_to_a_private_address_is_refused(serve: Serve, location: str) -> None:
    target = serve(says(b"secret"))
    first = serve(redirects("/two"))
    second = serve(redirects(location.format(port=target.port)))
    chain = serve(redirects(second.url()))
    fetch = fetcher(allowed_networks=["127.0.0.1/32"])
    assert code(fetch, FetchRequest(url=chain.url())) == "address_refused"
    assert first.connections == target.connections == 0


@pytest.mark.parametrize("location", ["http://a@b/", "http://2130706433/", "file:///etc/passwd"])
def test_a_redirect_to_an_odd_url_is_refused(serve: Serve, location: str) -> None:
    assert code(fetcher(), FetchRequest(url=serve(redirects(location)).url())) == "url_refused"


def test_this_machines_own_public_address_is_refused(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 stands for an address of ours that the tables call public."""
    from agentd.capability.fetch import fetcher as module

    server = serve(says(b"secret"))
    monkeypatch.setattr(module, "is_allowed", lambda text, allowed: True)
    fetch = fetcher({"own.test": ["127.0.0.1"]}, allowed_networks=())
    assert code(fetch, FetchRequest(url=server.url(host="own.test"))) == "address_refused"
    assert server.requests == []


def test_only_allowed_hosts(serve: Serve) -> None:
    server = serve(says(b"ok"))
    names = {name: ["127.0.0.1"] for name in ("a.test", "b.a.test", "evil-a.test", "c.test")}
    fetch = fetcher(names, allowed_hosts=["*.A.test", "c.test"])
    for host in ("b.a.test", "c.test", "C.TEST."):
        assert fetch.fetch(FetchRequest(url=server.url(host=host))).body == b"ok"
    for host in ("a.test", "evil-a.test", "127.0.0.1"):
        assert code(fetch, FetchRequest(url=server.url(host=host))) == "host_refused"


def test_a_redirect_leaves_the_allowed_hosts(serve: Serve) -> None:
    target = serve(says(b"secret"))
    first = serve(redirects(target.url()))
    fetch = fetcher({"a.test": ["127.0.0.1"]}, allowed_hosts=["a.test"])
    assert code(fetch, FetchRequest(url=first.url(host="a.test"))) == "host_refused"
    assert target.connections == 0


@pytest.mark.parametrize("pattern", ["", "*", "a.*", "*a.test", "http://a.test", "a.test/x"])
def test_a_pattern_that_does_not_say_what_it_seems_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput):
        Fetcher(allowed_hosts=[pattern])


def test_only_the_webs_ports(serve: Serve) -> None:
    server = serve(says(b"secret"))
    fetch = fetcher(ports=(80, 443))
    assert code(fetch, FetchRequest(url=server.url())) == "port_refused"
    assert code(fetch, FetchRequest(url="http://127.0.0.1:22/")) == "port_refused"
    assert fetcher(ports=[server.port]).fetch(FetchRequest(url=server.url())).body == b"secret"
    assert server.connections == 1


@pytest.mark.parametrize("value", ["10.0.0.1/8", "example.org", "::1/200"])
def test_a_network_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(InvalidInput):
        Fetcher(allowed_networks=[value])


def test_a_file_of_cas_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidInput):
        Fetcher(verify="/nowhere/ca.pem")


def test_the_environments_proxy_is_not_used(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server, proxy = serve(says(b"direct")), serve(says(b"proxied"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url())
    assert fetcher().fetch(FetchRequest(url=server.url())).body == b"direct"
    assert proxy.connections == 0
