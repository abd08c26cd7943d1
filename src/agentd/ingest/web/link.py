"""What a connection knows that a request does not say: who is at its other end, and its end."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import struct
from asyncio import Transport
from collections.abc import Callable, Iterator
from typing import Any, cast

from agentd.ingest.web.seats import Seats
from agentd.model.credential import Credential
from agentd.model.gatekeeper import Gatekeeper

_UCRED = struct.Struct("3i")  # unix(7): pid, uid, gid


class HoldingTransport:
    """Gathers what is written, where it is told to, for one send: a client that waits for an answer
    would wake up for its head alone."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._held: list[bytes] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        self._held = []
        try:
            yield
        finally:
            self._let_go()

    def write(self, data: bytes) -> None:
        if self._held is None:
            self._transport.write(data)
        elif data:  # asyncio's writelines would try to send an empty piece for ever
            self._held.append(data)

    def close(self) -> None:
        self._let_go()
        self._transport.close()

    def _let_go(self) -> None:
        held, self._held = self._held, None
        # Of one that has just gone asyncio's writelines, unlike write, watches the socket that is
        # about to be closed, and so breaks the next connection that has its number.
        if held and not self._transport.is_closing():
            self._transport.writelines(held)


class Link:
    """Knows a connection, for all its requests: it is ``scope["state"]["link"]``."""

    __slots__ = (
        *("_callbacks", "_seats", "address", "credential", "goes_on", "has_asked", "is_shut"),
        *("is_unix", "principal", "since", "transport"),
    )

    def __init__(self, transport: HoldingTransport, gatekeeper: Gatekeeper, seats: Seats) -> None:
        self.transport = transport
        self.principal = ""  # whose it is, once that is known
        self.has_asked = False
        self.is_shut = False  # by us, as the daemon shuts down
        self.goes_on = False  # it has a stream that its client can come back to
        self.since = asyncio.get_running_loop().time()
        self._seats = seats
        self._callbacks: set[Callable[[], None]] | None = set()
        connection = cast("socket.socket", transport.get_extra_info("socket"))
        self.is_unix = connection.family == socket.AF_UNIX
        self.address = _address(connection)
        self.credential = Credential()  # what holds for each of its requests
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if self.is_unix:
            with contextlib.suppress(OSError):  # it has gone already
                self.credential = gatekeeper.peer(connection)
        # Without CERT_REQUIRED nobody has verified what the client showed.
        elif tls is not None and tls.context.verify_mode is ssl.CERT_REQUIRED:
            self.credential = Credential(certificate=tls.getpeercert(binary_form=True))

    def identify(self, principal: str) -> None:
        """Note whose it is. Raises Full where the principal has too many connections."""
        if principal != self.principal:
            if not self.is_lost:  # else it has no seat to give back any more
                self._seats.identify(self, principal)
            self.principal = principal

    def cut(self) -> None:
        self.transport.abort()

    def shut(self) -> None:
        """Cut it, as the daemon shuts down: its client has not left."""
        self.is_shut = True
        self.cut()

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once when the connection has gone; at once where it has already."""
        if self._callbacks is None:
            callback()
        else:
            self._callbacks.add(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        if self._callbacks is not None:
            self._callbacks.discard(callback)

    def lost(self) -> None:
        self._seats.leave(self)
        callbacks, self._callbacks = self._callbacks or set(), None
        for callback in callbacks:
            callback()

    @property
    def is_lost(self) -> bool:
        return self._callbacks is None


def _address(connection: socket.socket) -> str:
    """Tell whose a stranger's connection is: a user's here, or that of a household's network."""
    try:
        if connection.family == socket.AF_UNIX:
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            return f"user {_UCRED.unpack(raw)[1]}"
        host = str(connection.getpeername()[0]).partition("%")[0]
        if connection.family == socket.AF_INET6:
            return f"from {ipaddress.ip_network((host, 64), strict=False)}"
    except (OSError, ValueError):
        return "gone"
    return f"from {host}"
