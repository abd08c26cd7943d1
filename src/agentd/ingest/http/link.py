"""What a connection knows that a request does not say: who is at its other end, and its end."""

import contextlib
import socket
import ssl
from asyncio import Transport
from collections.abc import Callable
from typing import Any, cast

from agentd.ingest.service import Service


class Link:
    """Found in ``scope["state"]["link"]``; the same for all requests of a connection."""

    __slots__ = ("_callbacks", "certificate", "is_unix", "peer", "transport")

    def __init__(self, transport: Transport, service: Service) -> None:
        self.transport = transport
        self.peer: object | None = None
        self.certificate: bytes | None = None
        self._callbacks: set[Callable[[], None]] | None = set()
        connection = cast("socket.socket", transport.get_extra_info("socket"))
        self.is_unix = connection.family == socket.AF_UNIX
        if self.is_unix:
            with contextlib.suppress(OSError):  # it has gone already
                self.peer = service.peer(connection)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        # Without CERT_REQUIRED nobody has verified what the client showed.
        if tls is not None and tls.context.verify_mode is ssl.CERT_REQUIRED:
            self.certificate = tls.getpeercert(binary_form=True)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """``callback`` runs once when the connection has gone; at once where it has already."""
        if self._callbacks is None:
            callback()
        else:
            self._callbacks.add(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        if self._callbacks is not None:
            self._callbacks.discard(callback)

    def lost(self) -> None:
        callbacks, self._callbacks = self._callbacks or set(), None
        for callback in callbacks:
            callback()

    @property
    def is_lost(self) -> bool:
        return self._callbacks is None


def link_of(scope: Any) -> Link:
    link: Link = scope["state"]["link"]
    return link
