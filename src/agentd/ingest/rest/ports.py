"""``/v1/sandboxes/{id}/ports/{port}/...``: HTTP to a server inside, one connection a request.

What is inside is hostile, to its visitors and to us: its answers are parsed strictly and written
anew, and a browser is told to keep its pages apart from this site.
"""

import asyncio
import re
from collections.abc import Iterable
from typing import Any

import h11

from agentd.ingest.rest import cookies
from agentd.ingest.rest.api import Exchange
from agentd.ingest.rest.tunnels import port_of
from agentd.ingest.web.exchange import CREDENTIALS, Aborted
from agentd.ingest.web.pipe import Pipe, piped
from agentd.ingest.web.standing import standing
from agentd.model.door import DoorService
from agentd.model.errors import AgentdError, GuestError, InvalidInput, NotFound

_HEAD = 64 << 10  # bytes of an answer's head
_AT_ONCE = 32  # pieces of a body that are passed on at once
_PREFIX = re.compile(rb"/v1/sandboxes/[^/%]+/ports/[^/%]+(?=/|\Z)")
# RFC 9110 §7.6.1; and those of which only we know the right value.
HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"te"),
        *(b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings"),
    )
)
_COOKIES = frozenset((b"cookie", b"cookie2"))  # but for those that the port has set
_OURS = frozenset((b"host", b"expect", b"forwarded", b"via"))
# What would speak for all of this site, not for one port of it.
_SITE = frozenset(
    (
        *(b"date", b"alt-svc", b"clear-site-data", b"strict-transport-security"),
        *(b"service-worker-allowed", b"public-key-pins", b"set-cookie2", b"x-request-id"),
    )
)
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
Headers = list[tuple[bytes, bytes]]


class Target:
    """Tells what is asked for of which port, byte for byte as the client wrote it: never decoded,
    never normalised. Raises NotFound where the path means another place once it is decoded."""

    def __init__(self, scope: Any) -> None:
        # Without a % in it, this much of the path is the same once it is decoded.
        match = _PREFIX.match(scope["raw_path"])
        path = scope["path_params"]
        if match is None:
            raise NotFound("there is no such path", remediation="write it as /ports/8080/")
        self.id: str = path["id"]
        self.port = port_of(path["port"])
        self.prefix = match[0]
        self.target = with_query(scope, scope["raw_path"][match.end() :] or b"/")

    # How the port's server and its visitor see each other.

    #: Without allow-same-origin its pages cannot call our API as whoever looks at them.
    content_policy: bytes | None = (
        b"sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads"
    )

    def host(self, given: bytes) -> bytes:
        """Return the Host that the server is told; ``given`` is what the visitor said."""
        return b"localhost:%d" % self.port

    def passes(self, name: bytes, value: bytes) -> bool:
        """Return whether a header of the visitor's goes in that may be a credential."""
        return False

    def inwards(self, values: list[bytes]) -> bytes:
        """Return the visitor's cookies as the server has set them; empty where there are none."""
        return cookies.inwards(values, self.prefix)

    def outwards(self, value: bytes) -> bytes | None:
        """Return the server's Set-Cookie header for the visitor; None where it sets nothing."""
        return cookies.outwards(value, self.prefix, self.target)


def with_query(scope: Any, path: bytes) -> bytes:
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path


def request_headers(scope: Any, target: Target) -> Headers:
    """Return those for the server inside: no credentials, and nothing that belongs to one hop."""
    given: Headers = scope["headers"]
    dropped = HOP | _OURS | _COOKIES | _named(given)
    kept = [
        (name, value)
        for name, value in given
        if name not in dropped
        and not name.startswith(b"x-forwarded-")
        and (name not in CREDENTIALS or target.passes(name, value))
    ]
    cookie = target.inwards([v for name, v in given if name == b"cookie"])
    if cookie:
        kept.append((b"cookie", cookie))
    host = next((value for name, value in given if name == b"host"), b"")
    client = scope["client"]
    kept += [
        (b"x-forwarded-host", host),
        (b"x-forwarded-proto", b"https" if scope["scheme"] in ("https", "wss") else b"http"),
        (b"x-forwarded-for", client[0].encode() if client else b"unix"),
    ]
    if target.prefix:
        kept.append((b"x-forwarded-prefix", target.prefix))
    return [(b"host", target.host(host)), *kept]


def _named(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """List what the Connection header says belongs to this hop; a body's framing never does."""
    names = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    return frozenset(names - {b"content-length", b"host"})


def response_headers(response: h11.Response, target: Target) -> Headers:
    """Return those for the visitor. Raises GuestError for what no answer may hold."""
    if response.status_code > 599:
        raise GuestError(f"the server inside answered with the status {response.status_code}")
    given = [(bytes(name), bytes(value)) for name, value in response.headers]
    if sum(len(name) + len(value) for name, value in given) > _HEAD:
        raise GuestError(f"the server inside sent more than {_HEAD} bytes of headers")
    dropped = HOP | _SITE | _named(given)
    if sum(name == b"location" for name, _ in given) > 1:
        raise GuestError("the server inside sent two Location headers")
    if response.status_code in (204, 304) or any(n == b"transfer-encoding" for n, _ in given):
        # There is no body that it could be of, or its length is another (RFC 9112, 6.3).
        dropped |= {b"content-length"}
    kept = []
    for name, value in given:
        if _BAD_VALUE.search(value):
            raise GuestError("the server inside sent a header with control characters")
        if name == b"location" and value.startswith(b"/") and not value.startswith(b"//"):
            value = target.prefix + value  # noqa: PLW2901 the same place, as seen from here
        if name == b"set-cookie":
            cookie = target.outwards(value)
            if cookie is not None:
                kept.append((name, cookie))
        elif name not in dropped:
            kept.append((name, value))
    if target.content_policy is not None:
        kept.append((b"content-security-policy", target.content_policy))
    return kept


async def forward(exchange: Exchange) -> None:
    target = Target(exchange.scope)
    await carry(exchange, target, await exchange.authenticate())


async def carry(exchange: Exchange, target: Target, service: DoorService) -> None:
    async with (
        piped(exchange, lambda: service.ports.open(target.id, target.port)) as pipe,
        standing(exchange, service, ("ports",), target.id, pipe.abort) as caller,
    ):
        try:
            await _Forward(exchange, target, pipe).run()
        except AgentdError:
            caller.check()  # it was cut off for that
            raise


class _Forward:
    def __init__(self, exchange: Exchange, target: Target, pipe: Pipe) -> None:
        self._exchange = exchange
        self._target = target
        self._pipe = pipe
        self._peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD)

    async def run(self) -> None:
        sending = asyncio.create_task(self._send())
        try:
            await self._receive()
        except h11.RemoteProtocolError as error:
            if self._exchange.started:
                raise Aborted("the server inside broke off") from None
            raise GuestError("the server inside does not speak HTTP", cause=str(error)) from None
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            failure = None if sending.cancelled() else sending.exception()
            if failure is not None and not self._exchange.started:
                raise failure

    async def _send(self) -> None:
        try:
            await self._send_request()
        except Exception:
            self._pipe.abort()  # no answer is to be waited for
            raise

    async def _send_request(self) -> None:
        scope = self._exchange.scope
        headers = [*request_headers(scope, self._target), (b"connection", b"close")]
        if self._exchange.length is None:
            headers = [h for h in headers if h[0] != b"content-length"]
            headers.append((b"transfer-encoding", b"chunked"))
        method = scope["method"].encode()
        try:
            request = h11.Request(method=method, target=self._target.target, headers=headers)
            head = self._peer.send(request)
        except h11.LocalProtocolError as error:
            raise InvalidInput(
                "the request cannot be forwarded",
                cause=str(error),
                remediation="send a method, a target and headers that HTTP/1.1 has",
            ) from None
        await self._pipe.send(head or b"")
        async for chunk in self._exchange.chunks():
            await self._pipe.send(self._peer.send(h11.Data(chunk)) or b"")
        await self._pipe.send(self._peer.send(h11.EndOfMessage()) or b"")

    async def _receive(self) -> None:
        while True:
            event, body = self._next()
            if body:
                await self._exchange.write(body)
            # What is there already waits for nothing: a server that says little at a time, and
            # much of it, would keep the loop from all others.
            await asyncio.sleep(0)
            if event is h11.NEED_DATA:
                self._peer.receive_data(await self._pipe.recv())
            elif isinstance(event, h11.Response):
                headers = response_headers(event, self._target)
                await self._exchange.start(event.status_code, headers)
            elif isinstance(event, h11.EndOfMessage):
                await self._exchange.end()
                return
            elif not isinstance(event, h11.InformationalResponse | h11.Data):
                # ConnectionClosed, or PAUSED after a switch of protocols that nobody asked for.
                raise h11.RemoteProtocolError("it closed the connection without an answer")

    def _next(self) -> tuple[h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED], bytes]:
        """Return what comes next, and the pieces of the body before it; it is one itself where
        there are many."""
        parts: list[bytes] = []
        while True:
            event = self._peer.next_event()
            if not isinstance(event, h11.Data):
                return event, b"".join(parts)
            parts.append(bytes(event.data))
            if len(parts) == _AT_ONCE:
                return event, b"".join(parts)
