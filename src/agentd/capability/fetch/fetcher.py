"""A fetch with its redirects: each hop is a new request, checked as if it were the first."""

import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from agentd.capability.fetch import hosts
from agentd.capability.fetch import url as urls
from agentd.capability.fetch.address import is_allowed, parse_networks
from agentd.capability.fetch.body import Plain, decoder, read
from agentd.capability.fetch.deadline import Deadline
from agentd.capability.fetch.headers import across_origins, check, without_body
from agentd.capability.fetch.lookup import Resolver, resolve, system
from agentd.capability.fetch.url import Url
from agentd.model.capability import CallFailed
from agentd.model.errors import InvalidInput

if TYPE_CHECKING:
    import ssl

    from agentd.capability.fetch.exchange import HttpExchange

_REDIRECTS = {301, 302, 303, 307, 308}
_WITHOUT_BODY = {"GET", "HEAD", "OPTIONS"}


class FetchRequest(msgspec.Struct, frozen=True):
    """``timeout`` in seconds for all of it, ``max_bytes`` of the decoded body."""

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = {}
    body: bytes = b""
    timeout: float = 30.0
    max_bytes: int = 1 << 20
    max_redirects: int = 5


class Response(msgspec.Struct, frozen=True):
    """``redirects``: the URLs that led here, the first asked first; ``decoded``: ``body`` is as
    it was before the server compressed it."""

    status: int
    url: str
    headers: Mapping[str, str]
    body: bytes
    truncated: bool
    decoded: bool
    redirects: tuple[str, ...]
    address: str


class _Hop(msgspec.Struct):
    """The next request of a fetch; redirects change it."""

    url: Url
    method: str
    headers: dict[str, str]
    body: bytes


class Fetcher:
    """Fetches URLs. Its caller says what it may reach; by default the public Internet's web ports.

    ``allowed_hosts``: patterns as ``example.org`` or ``*.example.org``, none for every host.
    ``allowed_networks``: not public, and yet allowed, as ``10.1.0.0/16``.
    ``ports``: None for every port. ``verify``: a file of the CAs to trust instead of the system's.
    Thread-safe. Raises InvalidInput.
    """

    def __init__(
        self,
        *,
        allowed_hosts: Sequence[str] = (),
        allowed_networks: Sequence[str] = (),
        ports: Collection[int] | None = (80, 443),
        resolver: Resolver = system,
        verify: str | None = None,
    ) -> None:
        self._hosts = hosts.check_patterns(allowed_hosts)
        try:
            self._networks = parse_networks(allowed_networks)
        except ValueError as error:
            raise InvalidInput(
                f"an allowed network is none: {error}", remediation="write it as 10.1.0.0/16"
            ) from error
        if verify is not None and not os.path.isfile(verify):
            raise InvalidInput(
                f"there is no file of CAs at {verify}", remediation="name a PEM file"
            )
        self._ports = None if ports is None else frozenset(ports)
        self._resolver = resolver
        self._verify = verify

    def fetch(
        self, request: FetchRequest, emit: Callable[[bytes], None] = lambda piece: None
    ) -> Response:
        """``emit`` gets the last response's body in pieces, as it comes. Raises CallFailed."""
        deadline = Deadline(request.timeout)
        if request.body and request.method in _WITHOUT_BODY:
            raise InvalidInput(
                f"a {request.method} request has no body", remediation="leave it out, or use POST"
            )
        hop = _Hop(urls.parse(request.url), request.method, check(request.headers), request.body)
        passed: list[str] = []
        while True:
            with self._open(hop.url, deadline) as exchange:
                exchange.send(hop.method, hop.headers, hop.body)
                if request.max_redirects == 0 or not _is_redirect(exchange):
                    return _response(exchange, hop, request.max_bytes, emit, tuple(passed))
                following = _next(hop, exchange.status, exchange.headers["location"])
            passed.append(hop.url.text)
            if len(passed) > request.max_redirects:
                raise CallFailed(
                    "too_many_redirects",
                    f"there are more than {request.max_redirects} redirects",
                    remediation="raise max_redirects, or ask for where they lead",
                )
            hop = following

    def _open(self, url: Url, deadline: Deadline) -> "HttpExchange":
        """Open it, without a connection yet. Raises CallFailed where it may not go there."""
        from agentd.capability.fetch.exchange import HttpExchange

        hosts.check(url.host, self._hosts)
        if self._ports is not None and url.port not in self._ports:
            ports = ", ".join(str(port) for port in sorted(self._ports))
            raise CallFailed(
                "port_refused",
                f"port {url.port} may not be fetched from",
                remediation=f"use one of: {ports}",
            )
        addresses = self._addresses(url.host, deadline)
        return HttpExchange(
            url, addresses, allowed=self._networks, tls=self._tls, deadline=deadline
        )

    def _addresses(self, host: str, deadline: Deadline) -> tuple[str, ...]:
        """Those that a connection then goes to. One bad address refuses the name: an honest name
        does not mix them."""
        from agentd.capability.fetch.wire import refused

        is_address = ":" in host or host.rpartition(".")[2].isdigit()
        found = (host,) if is_address else resolve(self._resolver, host, deadline)
        if not all(is_allowed(address, self._networks) for address in found):
            raise refused(host)
        return found

    @functools.cached_property
    def _tls(self) -> "ssl.SSLContext":
        """Allow TLS 1.2 and later, and check names and certificates."""
        import ssl

        context = ssl.create_default_context(cafile=self._verify)
        paths = ssl.get_default_verify_paths()
        if self._verify is None and not (paths.cafile or paths.capath):
            import certifi

            context.load_verify_locations(certifi.where())
        return context


def _is_redirect(exchange: "HttpExchange") -> bool:
    return exchange.status in _REDIRECTS and "location" in exchange.headers


def _next(hop: _Hop, status: int, location: str) -> _Hop:
    """Follow a redirect as browsers do it. Raises CallFailed."""
    # Bytes that are no ASCII stand for themselves, as browsers have it: most are UTF-8.
    escaped = "".join(c if c.isascii() else f"%{ord(c):02X}" for c in location)
    target = urls.join(hop.url, escaped)
    if hop.url.scheme == "https" and target.scheme == "http":
        raise CallFailed(
            "redirect_refused",
            f"{hop.url.host} redirects from https to http",
            remediation="ask for the http URL itself if what it says need not be trusted",
        )
    method, headers, body = hop.method, hop.headers, hop.body
    if target.origin != hop.url.origin:
        headers = across_origins(headers)
    if (status == 303 and method != "HEAD") or (status in {301, 302} and method == "POST"):
        method, headers, body = "GET", without_body(headers), b""
    return _Hop(target, method, headers, body)


def _response(
    exchange: "HttpExchange",
    hop: _Hop,
    max_bytes: int,
    emit: Callable[[bytes], None],
    redirects: tuple[str, ...],
) -> Response:
    decode = decoder(exchange.headers.get("content-encoding", ""))
    body, truncated = read(exchange.body(), decode or Plain(), max_bytes, emit)
    return Response(
        status=exchange.status,
        url=hop.url.text,
        headers=exchange.headers,
        body=body,
        truncated=truncated,
        decoded=decode is not None,
        redirects=redirects,
        address=exchange.address,
    )
