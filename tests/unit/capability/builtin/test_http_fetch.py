import base64
import errno
import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NoReturn

import pytest
from tests.unit.capability.fetch.servers import Answer, Server, fetcher, says

from agentd.capability import schema
from agentd.capability.builtin.http_fetch import CAPABILITY, HttpFetch
from agentd.capability.call import CallContext, perform
from agentd.capability.fetch import lookup, wire
from agentd.model.capability import CallFailed, Example
from agentd.model.errors import InvalidInput, Unavailable


class NoInside:
    """It acts in the daemon: touching a sandbox fails."""


def call(
    capability: HttpFetch,
    parameters: dict[str, Any],
    emitted: list[tuple[str, bytes]] | None = None,
) -> dict[str, Any]:
    schema.check(capability.about, parameters)
    keep = emitted if emitted is not None else []
    context = CallContext.of(
        capability.about, parameters, request_id="r", emit=lambda *piece: keep.append(piece)
    )
    return dict(perform(capability, context, NoInside()).value)  # type: ignore[arg-type]


@pytest.fixture
def one(request: pytest.FixtureRequest) -> Iterator[Server]:
    answer: Answer = getattr(request, "param", says(b"hello"))
    with closing(Server(answer)) as server:
        yield server


@pytest.mark.parametrize("example", CAPABILITY.about.examples, ids=lambda one: one.about)
def test_its_examples_are_true(example: Example) -> None:
    with pytest.raises(CallFailed) as caught:
        call(CAPABILITY, dict(example.parameters))
    assert caught.value.code == example.error


def test_its_value_has_all_of_the_answer(one: Server) -> None:
    emitted: list[tuple[str, bytes]] = []
    value = call(HttpFetch(fetcher()), {"url": one.url()}, emitted)
    assert value == {
        "status": 200,
        "url": one.url(),
        "headers": {"content-length": "5"},
        "body": "hello",
        "encoding": "utf-8",
        "decoded": True,
        "truncated": False,
        "redirects": [],
        "address": "127.0.0.1",
    }
    assert emitted == [("body", b"hello")]


@pytest.mark.parametrize("one", [says(b"\xff\0data")], indirect=True)
def test_what_is_no_text_comes_as_base64(one: Server) -> None:
    value = call(HttpFetch(fetcher()), {"url": one.url()})
    assert (value["encoding"], base64.b64decode(value["body"])) == ("base64", b"\xff\0data")
    value = call(HttpFetch(fetcher()), {"url": one.url(), "encoding": "utf-8"})
    assert value["body"] == "\ufffd\0data"


@pytest.mark.parametrize("one", [says("aé".encode())], indirect=True)
def test_a_cut_through_a_character_leaves_text_of_whole_ones(one: Server) -> None:
    value = call(HttpFetch(fetcher()), {"url": one.url(), "max_bytes": 2})
    assert (value["encoding"], value["body"], value["truncated"]) == ("utf-8", "a", True)


def test_a_body_is_sent(one: Server) -> None:
    for body, encoding in (("ünd", "utf-8"), (base64.b64encode(b"\0\xff").decode(), "base64")):
        parameters = {"url": one.url(), "method": "PUT", "body": body, "body_encoding": encoding}
        call(HttpFetch(fetcher()), parameters)
    bodies = [request.partition(b"\r\n\r\n")[2] for request in one.requests]
    assert bodies == ["ünd".encode(), b"\0\xff"]


def test_a_body_that_is_not_base64_is_refused(one: Server) -> None:
    parameters = {"url": one.url(), "method": "PUT", "body": "*", "body_encoding": "base64"}
    with pytest.raises(InvalidInput):
        call(HttpFetch(fetcher()), parameters)
    assert one.connections == 0


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "get", "GET /x HTTP/1.1\r\n"])
def test_other_methods_are_refused(method: str) -> None:
    with pytest.raises(InvalidInput):
        call(CAPABILITY, {"url": "http://example.org/", "method": method})


def test_the_default_reaches_nothing_local(one: Server) -> None:
    for url in (one.url(), f"http://localhost:{one.port}/", "http://localhost/"):
        with pytest.raises(CallFailed) as caught:
            call(CAPABILITY, {"url": url})
        assert caught.value.code in {"address_refused", "port_refused"}
    assert one.connections == 0


def test_the_largest_answer_fits_its_bound() -> None:
    """Control characters are six bytes each in JSON."""
    with closing(Server(says(b"\x01" * (8 << 20)))) as server:
        value = call(HttpFetch(fetcher()), {"url": server.url(), "max_bytes": 8 << 20})
    assert len(value["body"]) == 8 << 20


def test_what_this_machine_is_short_of_is_not_the_hosts_fault(
    one: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*of: object, **more: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for place, url in ((wire, one.url()), (lookup, "http://name.test/")):
        with monkeypatch.context() as short:
            short.setattr(place.socket, "socket" if place is wire else "getaddrinfo", refused)
            with pytest.raises(Unavailable) as caught:
                call(HttpFetch(fetcher(resolver=lookup.system)), {"url": url})
        assert "ulimit" in caught.value.remediation
    assert call(HttpFetch(fetcher()), {"url": one.url()})["body"] == "hello"
