"""Who asks: what a request or a WebSocket brings along to prove it, and what a browser must not do
in one's name."""

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import msgspec

from agentd.ingest.web.door import Door
from agentd.ingest.web.link import Link
from agentd.ingest.web.rooms import caller
from agentd.model.credential import Credential
from agentd.model.door import DoorService
from agentd.model.errors import Forbidden, InvalidInput

#: These prove something to us; nobody else is ever told them.
CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"proxy-authorization"))
_READ = frozenset((b"authorization", b"x-api-key", b"origin", b"host"))


def credential_of(link: Link, headers: Iterable[tuple[bytes, bytes]]) -> Credential:
    """Raises InvalidInput for a credential that is there twice, Forbidden for another site's."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _READ:
            # Two servers in a row could each believe another one of them.
            if name in found:
                raise InvalidInput(f"the header {name.decode()} is there twice")
            found[name] = value
    authorization, api_key = found.get(b"authorization"), found.get(b"x-api-key")
    if authorization is None and api_key is None:
        is_plain_tcp = not link.is_unix and link.credential.certificate is None
        _check_site(found, is_plain_tcp=is_plain_tcp)
        return link.credential
    return msgspec.structs.replace(
        link.credential, authorization=_text(authorization), api_key=_text(api_key)
    )


def is_quick(credential: Credential) -> bool:
    """Return whether a look into memory is enough, as for a peer and for an API key, which has no
    dot.

    A token and a certificate have a signature to be verified, and a token's key may have to be
    fetched first.
    """
    if credential.authorization is not None:
        return "." not in credential.authorization
    return credential.api_key is not None or credential.certificate is None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _check_site(found: dict[bytes, bytes], *, is_plain_tcp: bool) -> None:
    """Where the connection itself is the credential, any page in a browser could use it.

    A request of another site's page names that site in Origin (Fetch standard, "Origin header");
    after DNS rebinding Origin and Host agree, but both then name the attacker's domain.
    """
    host = found.get(b"host", b"").decode("latin-1")
    origin = found.get(b"origin")
    if origin is not None and urlsplit(origin.decode("latin-1")).netloc.lower() != host.lower():
        raise Forbidden(
            "a page of another site asks this",
            cause=f"its origin is {origin.decode('latin-1')[:200]!r}",
            remediation="send an API key with the request",
        )
    if is_plain_tcp and host and not _is_address(host):
        raise Forbidden(
            f"this is not the host {host[:200]!r}",
            cause="without a credential it answers to localhost and to IP addresses only",
            remediation="send an API key, or use http://localhost",
        )


def _is_address(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


D = TypeVar("D", bound=Door)


class WebRequest(Generic[D]):
    """An ASGI request of either kind: it has a door, a connection, a path, and who asks.

    Belongs to a task of the event loop.
    """

    def __init__(self, door: D, scope: Any, receive: Any, send: Any) -> None:
        self.door = door
        self.web = door.web
        self.scope = scope
        self.link: Link = scope["state"]["link"]
        # By their names in lower case.
        self.headers: Mapping[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        if len(self.headers) < len(scope["headers"]):
            self.headers = _joined(scope["headers"])
        self.path: Mapping[str, str] = scope.get("path_params", {})  # the parameters in it
        self.quick = True  # whether it takes no time to ask who asks
        self._receive = receive
        self._send = send

    async def authenticate(self, credential: Credential | None = None) -> DoorService:
        """Ask the gatekeeper who asks: whatever this task asks of rooms from now on is theirs.

        ``credential`` is for a door that reads another one than ``credential_of`` does. Raises
        Unauthenticated and others for what proves nothing, Full where the caller has too many
        connections.
        """
        given = (
            credential_of(self.link, self.scope["headers"]) if credential is None else credential
        )
        prove = partial(self.door.gatekeeper.authenticate, given)
        return await self.prove(prove, quick=is_quick(given))

    async def prove(self, prove: Callable[[], DoorService], *, quick: bool) -> DoorService:
        """``authenticate`` by what is no credential; ``quick`` where it cannot block."""
        self.quick = quick
        # Until it is known who asks, that takes room of the connection's address alone.
        caller.set(self.link.address)
        service = prove() if quick else await self.web.threads.short.run(prove)
        name = service.caller.name
        self.link.identify(name)
        caller.set(name)
        return service


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """Several of one name are one with commas (RFC 9110, 5.2): neither is left out."""
    found: dict[str, str] = {}
    for name, value in ((n.decode("latin-1"), v.decode("latin-1")) for n, v in headers):
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found
