"""A WebSocket to a daemon: messages in and out without waiting; the caller polls it."""

import http.client
import os
import ssl
import weakref
from typing import Any

from agentd.client import cut
from agentd.client.http import frames
from agentd.client.http.client import HttpClient, Query, encoded
from agentd.client.http.connection import Connection, Pool
from agentd.client.http.errors import from_answer
from agentd.client.http.frames import BINARY, CLOSE, PING, PONG, TEXT, Frames, Message

_READ = 256 << 10
_MAX_ERROR = 1 << 20
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class WebSocket:
    """Raises ConnectionError from every method once the connection has ended."""

    def __init__(self, client: HttpClient, path: str, query: Query, wake: int = -1) -> None:
        """Raises what the daemon says where it will not, Unreachable and OSError, and Woken where
        ``wake`` is readable before it has answered."""
        self._frames = Frames()
        connection = client.pool.take()
        # Also where it is forgotten: what nobody gives back no other request has.
        self._free = weakref.finalize(self, _free, client.pool, connection, os.getpid())
        self._free.atexit = False
        try:
            with cut.of_this_thread().holding(connection):
                if wake >= 0:
                    connection.wake_by(wake)
                first = _shake(connection, client.headers(), path + encoded(query))
        except BaseException:
            self._free()
            raise
        self._sock: Any = connection.sock
        self._sock.setblocking(False)
        self._outgoing = bytearray()
        self._ready = self._frames.feed(first)
        self._ended: ConnectionError | None = None
        self._closed = False

    def fileno(self) -> int:
        return int(self._sock.fileno())

    @property
    def pending(self) -> bool:
        """Whether ``receive`` has something though the descriptor is not readable."""
        return bool(self._ready) or self._ended is not None

    @property
    def backlog(self) -> int:
        """Bytes that could not be sent yet: poll for POLLOUT, then ``flush``."""
        return len(self._outgoing)

    def send(self, kind: int, data: bytes) -> None:
        self._outgoing += frames.encode(kind, data)
        self.flush()

    def ping(self) -> None:
        """Ask for a PONG: then all that was sent before has arrived."""
        self.send(PING, b"")

    def flush(self) -> None:
        """Send what can be sent without waiting."""
        while self._outgoing:
            try:
                sent = self._sock.send(memoryview(self._outgoing)[:_READ])
            except _WOULD_BLOCK:
                return
            except ssl.SSLError as error:
                raise ConnectionResetError(str(error)) from error
            del self._outgoing[:sent]

    @property
    def has_ended(self) -> bool:
        """Return whether the daemon has closed it, or it broke."""
        return self._ended is not None

    def receive(self) -> list[Message]:
        """Return the TEXT, BINARY and PONG messages that are there; pings are answered here."""
        found, self._ready = self._ready, []
        if not found and self._ended is not None:
            raise self._ended
        try:
            found += self._frames.feed(self._read())
            return [message for message in found if self._concerns_the_caller(message)]
        except ConnectionError as error:
            # What came before it is the caller's.
            self._ended = self._ended or error
            if not found:
                raise
            return [message for message in found if message.kind in (TEXT, BINARY, PONG)]

    def close(self) -> None:
        """Say so, where that can be said without waiting; idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            self.send(CLOSE, frames.NORMAL.to_bytes(2, "big"))
        except OSError:
            pass
        finally:
            self._free()

    def _read(self) -> bytes:
        data = bytearray()
        try:
            data += self._sock.recv(_READ)
            if not data:
                raise ConnectionResetError("the connection has ended")
            while getattr(self._sock, "pending", int)():
                data += self._sock.recv(_READ)  # of TLS: what poll cannot see
        except _WOULD_BLOCK:
            pass
        except ssl.SSLError as error:
            raise ConnectionResetError(str(error)) from error
        return bytes(data)

    def _concerns_the_caller(self, message: Message) -> bool:
        if message.kind == PING:
            self.send(PONG, message.data)
        elif message.kind == CLOSE:
            code = int.from_bytes(message.data[:2], "big")
            reason = message.data[2:].decode(errors="replace")
            self._ended = ConnectionResetError(f"the daemon closed it: {code} {reason}".strip())
        return message.kind in (TEXT, BINARY, PONG)


def _free(pool: Pool, connection: Connection, owner: int) -> None:
    """A forked copy is none of the pool's, whose lock the parent's threads may hold for ever."""
    if os.getpid() == owner:
        pool.give_back(connection, reusable=False)
    else:
        connection.close()


def _shake(connection: Connection, headers: dict[str, str], target: str) -> bytes:
    """Upgraded; what came behind the answer's head already."""
    asked, accept = frames.upgrade()
    connection.request("GET", target, None, {**headers, **asked})
    response = connection.getresponse()
    try:
        _check(response, accept)
        connection.wake_by(-1)  # from here on nothing waits
        connection.sock.setblocking(False)
        return bytes(response.fp.peek())
    except ssl.SSLWantReadError:
        return b""
    finally:
        response.close()


def _check(response: http.client.HTTPResponse, accept: str) -> None:
    """Raises what the daemon says where it will not; ConnectionError for any other answer."""
    if response.status >= 400:
        raise from_answer(response.status, response.headers, response.read(_MAX_ERROR))
    if response.status != http.client.SWITCHING_PROTOCOLS:
        raise ConnectionRefusedError(f"status {response.status} where a WebSocket was asked for")
    if response.headers.get("Sec-WebSocket-Accept", "").strip() != accept:
        raise ConnectionRefusedError("the answer does not belong to the request")
