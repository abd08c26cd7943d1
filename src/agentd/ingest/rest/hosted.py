"""Requests to the host of a port: who asks, and how the two sides see each other.

A browser sends no API key. It comes with a link, ``/.agentd/TOKEN/...``, and is sent on with a
cookie for that host alone, which neither the server inside nor its pages ever see.
"""

import contextlib
import re
from typing import Any

from agentd.ingest.rest import ports, ports_websocket
from agentd.ingest.rest.api import Exchange, Socket
from agentd.ingest.rest.ports import Target, with_query
from agentd.ingest.rest.tunnels import port_of
from agentd.ingest.web.exchange import CREDENTIALS
from agentd.model.answer import Answer
from agentd.model.door import DoorService
from agentd.model.errors import Forbidden, GuestError, OperationFailed, Unauthenticated
from agentd.model.gatekeeper import Gatekeeper
from agentd.model.port import LINK_PATH, PortDomain, PortHost

_LINK = re.compile(re.escape(LINK_PATH.encode()) + rb"([A-Za-z0-9_-]{1,128})(?=/|\Z)")
# The prefix lets no page of another host below the same domain set it (RFC 6265bis, 4.1.3.2).
_PLAIN, _SECURE = b"agentd-link", b"__Host-agentd-link"
_AUTHORIZATION = b"authorization"
_OF_SITE = frozenset((b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"))


class HostTarget(Target):
    """A port at a host of its own: its server is told that host, and all but our own goes in."""

    content_policy = None  # an origin of its own keeps it apart
    prefix = b""

    def __init__(self, scope: Any, host: PortHost, domain: PortDomain) -> None:
        self.id = host.sandbox
        self.port = port_of(str(host.port))
        self.secure = "https" in (domain.scheme, scope["scheme"]) or scope["scheme"] == "wss"
        path: bytes = scope["raw_path"]
        match = _LINK.match(path)
        self.token = None if match is None else match[1].decode()
        self.target = with_query(scope, (path if match is None else path[match.end() :]) or b"/")
        #: Whether a link was believed, and none of the headers that may be credentials.
        self.by_link = False

    @property
    def cookie_name(self) -> bytes:
        return _SECURE if self.secure else _PLAIN

    def tokens(self, scope: Any) -> list[str]:
        """Return the link's, or those in the visitor's cookies of its name: in the clear, a page of
        another port may have set some for all below the operator's name (``Domain``)."""
        if self.token is not None:
            return [self.token]
        pairs = _pairs(v for n, v in scope["headers"] if n == b"cookie")
        return [value.decode("latin-1") for name, value in pairs if name == self.cookie_name]

    def host(self, given: bytes) -> bytes:
        return given

    def passes(self, name: bytes, value: bytes) -> bool:
        # A bearer's token may be one of ours; what the server inside asked for by itself is not.
        return (
            self.by_link
            and name == _AUTHORIZATION
            and value.strip().partition(b" ")[0].lower() != b"bearer"
        )

    def inwards(self, values: list[bytes]) -> bytes:
        return b"; ".join(
            b"=".join((name, value)) if name else value
            for name, value in _pairs(values)
            if name not in (_PLAIN, _SECURE)
        )

    def outwards(self, value: bytes) -> bytes | None:
        pair, *attributes = value.split(b";")
        name, equals, _ = pair.partition(b"=")
        if not equals or not name.strip() or name.strip() in (_PLAIN, _SECURE):
            return None
        kept = [a for a in attributes if a.partition(b"=")[0].strip().lower() != b"domain"]
        return b";".join((pair, *kept))


def _pairs(values: Any) -> list[tuple[bytes, bytes]]:
    """Cookies by name; b"" where one has none."""
    found = []
    for value in values:
        for pair in value.split(b";"):
            name, equals, content = pair.strip().partition(b"=")
            if name or content:
                found.append((name.strip(), content.strip()) if equals else (b"", name))
    return found


async def forward(exchange: Exchange, host: PortHost, domain: PortDomain) -> None:
    target = HostTarget(exchange.scope, host, domain)
    service = await _service(exchange, target)
    if target.token is not None and _shows_pages(exchange):
        await exchange.answer(_sent_on(exchange, target))
        return
    try:
        await ports.carry(exchange, target, service)
    except OperationFailed as error:
        raise _unanswered(error) from None


async def forward_websocket(socket: Socket, host: PortHost, domain: PortDomain) -> None:
    target = HostTarget(socket.scope, host, domain)
    service = await _service(socket, target)
    try:
        await ports_websocket.carry(socket, target, service)
    except OperationFailed as error:
        raise _unanswered(error) from None


async def _service(request: Exchange | Socket, target: HostTarget) -> DoorService:
    """Raises Unauthenticated, Forbidden for a page of another site that asks."""
    scope, link = request.scope, request.link
    tokens = target.tokens(scope)
    known = link.is_unix or link.credential.certificate is not None
    named = any(name in CREDENTIALS for name, _ in scope["headers"])
    if target.token is None and (tokens or not named):
        _check_same_site(scope)  # a cookie and a connection say nothing of who wrote the request
    if tokens:
        target.by_link = True
        gatekeeper = request.door.gatekeeper
        return await request.prove(lambda: _follow(gatekeeper, tokens, target), quick=False)
    if not (known or named):
        raise Unauthenticated(
            "this is a port of a sandbox, and nothing says that you may use it",
            remediation="open it by a link: agentd port ID PORT --link",
        )
    return await request.authenticate()


def _follow(gatekeeper: Gatekeeper, tokens: list[str], target: HostTarget) -> DoorService:
    """Raises what the last of them is refused with."""
    for token in tokens[:-1]:
        with contextlib.suppress(Unauthenticated):
            return gatekeeper.follow(token, target.id, target.port)
    return gatekeeper.follow(tokens[-1], target.id, target.port)


def _shows_pages(exchange: Exchange) -> bool:
    """Return whether a browser asks for a page, and not a program for something."""
    accepts = exchange.headers.get("accept") or ""
    return exchange.scope["method"] in ("GET", "HEAD") and "text/html" in accepts


def _sent_on(exchange: Exchange, target: HostTarget) -> Answer:
    """Return the same without the token, which from then on is in a cookie."""
    scheme = "https" if target.secure else "http"
    where = f"{scheme}://{exchange.headers.get('host')}{target.target.decode('latin-1')}"
    cookie = f"{target.cookie_name.decode()}={target.token}; Path=/; HttpOnly; SameSite=Lax"
    headers = {
        "location": where,
        "set-cookie": cookie + ("; Secure" if target.secure else ""),
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
    }
    return Answer(303, b"", headers)


def _unanswered(error: OperationFailed) -> GuestError:
    return GuestError(
        error.message, cause=error.cause, remediation="start a server on that port, and come again"
    )


def _check_same_site(scope: Any) -> None:
    """Raises Forbidden for what a page of another origin asks, but to be opened in its place.

    A sibling below the same domain is another origin, too: SameSite cookies do not keep it away.
    Browsers say who asks in Sec-Fetch-Site (Fetch Metadata); where that is missing, Origin does.
    """
    found = {name: value for name, value in scope["headers"] if name in _OF_SITE}
    site = found.get(b"sec-fetch-site")
    if site is None:
        origin = found.get(b"origin")
        own = origin is None or origin.partition(b"://")[2].lower() == found[b"host"].lower()
    else:
        own = site in (b"same-origin", b"none") or (
            scope.get("method") in ("GET", "HEAD")
            and found.get(b"sec-fetch-mode") == b"navigate"
            and found.get(b"sec-fetch-dest") == b"document"
        )
    if not own:
        raise Forbidden(
            "a page of another site asks this",
            cause=f"its origin is {found.get(b'origin', b'not said')[:200].decode('latin-1')}",
            remediation="open it by itself, in a window of its own",
        )
