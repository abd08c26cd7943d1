"""A connection to a port of a daemon's sandbox: plain bytes, over a WebSocket."""

import select
import time
from collections import deque
from contextlib import suppress
from typing import Any

import msgspec

from agentd.client.http.client import HttpClient
from agentd.client.http.errors import Unreachable, from_view
from agentd.client.http.frames import BINARY, TEXT
from agentd.client.http.websocket import WebSocket
from agentd.model import typed
from agentd.model.api import ErrorView
from agentd.model.errors import AgentdError, BackendLost

_PIECE = 64 << 10
_EOF = b'{"op":"eof"}'
_LAST_SECONDS = 5.0  # that ``close`` waits for what was sent to be taken


class _Event(msgspec.Struct):
    event: str
    error: ErrorView | None = None


_EVENT = typed.decoder(_Event)


class HttpPort:
    """Implements ``model.port.Port``. Its descriptor is an epoll: readable for what came, and, once
    ``send_some`` has taken less than it was given, for room."""

    def __init__(self, client: HttpClient, path: str) -> None:
        """Raises what the daemon says where it will not, Unreachable and OSError."""
        self._where = client.address
        self._socket = WebSocket(client, path, {})
        self._epoll = select.epoll()
        self._epoll.register(self._socket, select.EPOLLIN)
        self._received: deque[bytes] = deque()
        self._received_all = False
        self._sent_all = False
        self._error: AgentdError | None = None

    def fileno(self) -> int:
        return self._epoll.fileno()

    def pending(self) -> bool:
        return bool(self._received) or self._is_over or self._socket.pending

    def send_some(self, data: bytes) -> int:
        if isinstance(self._error, BackendLost):
            raise self._error
        if self._sent_all or self._error is not None:
            raise BackendLost("the connection is closed for sending")
        if self._received_all:  # what comes now are pings, and nobody else reads them
            self._take()
        try:
            self._socket.flush()
            size = 0 if self._socket.backlog else min(len(data), _PIECE)
            if size:
                self._socket.send(BINARY, bytes(data[:size]))
        except OSError as error:
            raise BackendLost("the connection has ended", cause=str(error)) from error
        self._wait_for_room()
        return size

    def recv(self, timeout: float | None = None) -> bytes:
        end = None if timeout is None else time.monotonic() + timeout
        while not self._received:
            if self._error is not None:
                raise self._error
            if self._received_all:
                return b""
            if not self._socket.pending:
                left = None if end is None else max(0.0, end - time.monotonic())
                if not self._epoll.poll(left):
                    raise TimeoutError(f"nothing came within {timeout:g} s")
            self._take()
        return self._received.popleft()

    def half_close(self) -> None:
        if not self._sent_all:
            self._sent_all = True
            with suppress(OSError):
                self._socket.send(TEXT, _EOF)
                self._wait_for_room()

    def close(self) -> None:
        """Close it; what was sent goes out first, and where both ends have said all arrives first,
        in a few seconds or not at all. Idempotent."""
        if self._epoll.closed:
            return
        end = time.monotonic() + _LAST_SECONDS
        said_all = self._sent_all and self._received_all
        with suppress(OSError):
            while self._socket.backlog or (said_all and not self._socket.has_ended):
                left = end - time.monotonic()
                if left <= 0:
                    break
                poller = select.poll()
                room = select.POLLOUT if self._socket.backlog else 0
                poller.register(self._socket, room | (select.POLLIN if said_all else 0))
                poller.poll(left * 1000)
                self._socket.flush()
                if said_all:
                    self._socket.receive()
        self._epoll.close()
        self._socket.close()

    def __enter__(self) -> "HttpPort":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def _is_over(self) -> bool:
        return self._received_all or self._error is not None

    def _wait_for_room(self) -> None:
        room = select.EPOLLOUT if self._socket.backlog else 0
        self._epoll.modify(self._socket, select.EPOLLIN | room)

    def _take(self) -> None:
        try:
            self._socket.flush()
            self._wait_for_room()
            for message in self._socket.receive():
                if message.kind == BINARY:
                    self._received.extend(filter(None, (message.data,)))
                elif message.kind == TEXT:
                    self._hear(_EVENT.decode(message.data))
        except (OSError, msgspec.DecodeError) as error:
            if not self._is_over:
                self._error = Unreachable(
                    f"the connection to a port by {self._where} broke", cause=str(error)
                )

    def _hear(self, event: Any) -> None:
        if event.event == "eof":
            self._received_all = True
        elif event.error is not None:
            self._error = self._error or from_view(event.error)
