"""Both ends of a connection as coroutines read and write them: plain, or TLS.

A TLS end is a socket that does not block, and a library that says what it waits for. The sandbox's
is of pyOpenSSL, as ``ssl`` takes certificates from files alone, and there are none here.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from OpenSSL import SSL

MOST = 256 << 10  # bytes that are read at once
_RECORD = 16 << 10
_PARTIAL_WRITE = 1  # SSL_MODE_ENABLE_PARTIAL_WRITE
_RESET = struct.pack("=ii", 1, 0)  # struct linger: on, and no time
_buffer = bytearray(MOST)  # of one thread, and of whoever reads just now
#: As the relay has it of connections that are not read.
IDLE_SECONDS = 3600.0
_LOOK_SECONDS = 15.0  # between looks at how long nothing was said
_READ = (BlockingIOError, ssl.SSLWantReadError, SSL.WantReadError)
_WRITE = (ssl.SSLWantWriteError, SSL.WantWriteError)
#: What a broken end raises.
BROKEN = (OSError, SSL.Error)
_T = TypeVar("_T")


class ReadEnd:
    """One reader and one writer at a time. ``moved`` counts what was read. No read and no write
    waits longer than ``patience``, in seconds, while nothing is said at ``other`` either:
    TimeoutError."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes ownership."""
        sock.setblocking(False)
        self.sock = sock
        self.moved = 0
        #: Is told what was read before anybody has it; raises OSError where that was too much.
        self.meter: Callable[[int], Awaitable[None]] | None = None
        self.patience = IDLE_SECONDS
        self.other: ReadEnd | None = None
        self._unread = b""  # by who had no room to move it yet, and was cancelled
        self._broken: Exception | None = None  # behind what was read: the next read raises it
        self._loop = asyncio.get_running_loop()
        self._at = self._loop.time()  # when something was said, or was waited for anew
        self._clock: asyncio.TimerHandle | None = None
        self._waiting: dict[str, list[asyncio.Future[None]]] = {"in": [], "out": []}

    async def read(self) -> bytes:
        """Return what is there, once something is; b"" at the end. Others have their turn first."""
        await asyncio.sleep(0)
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        if self._broken is not None:
            raise self._broken
        first = await self._until(lambda: self._receive(MOST))
        parts = [first]
        size = len(first)
        # Of TLS a record comes at a time.
        while first and size < MOST and self._more(len(parts[-1])):
            try:
                parts.append(self._receive(_RECORD))
            except BROKEN as error:
                self._keep(error)
                break
            size += len(parts[-1])
            if not parts[-1]:
                break
        data = b"".join(parts) if len(parts) > 1 else first
        self._at = self._loop.time()
        if self.meter is not None and size:
            try:
                await self.meter(size)
            except asyncio.CancelledError:
                self.moved += size
                self._unread = data
                raise
        self.moved += size
        return data

    def _keep(self, error: Exception) -> None:
        """What ends it comes behind what was read: an answer, of a host that takes no more."""
        if not isinstance(error, (*_READ, *_WRITE)):
            self._broken = error

    async def peek(self) -> bytes:
        """Return its first byte without taking it; b"" at the end."""
        return await self._until(lambda: self.sock.recv(1, socket.MSG_PEEK))

    async def gone(self) -> None:
        """Return once it has ended, or says something that was not asked for."""
        try:
            await self._until(lambda: self._receive(1))
        except BROKEN:
            return

    async def write(self, data: bytes) -> None:
        """Return once the kernel has all of it."""
        rest = memoryview(data)
        while rest:
            rest = rest[await self._until(partial(self._send, rest), writes=True) :]

    async def finish(self) -> None:
        """Say that no more comes."""
        with contextlib.suppress(*BROKEN):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self, *, broken: bool = False) -> None:
        """End it, for whoever has a copy of it, too; one that is ``broken`` is reset by whoever of
        us is the last. Idempotent."""
        self._stop("in")
        self._stop("out")
        if self._clock is not None:
            self._clock.cancel()
        with contextlib.suppress(OSError):
            if broken:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            else:
                self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    # --- of plain sockets ---

    def _receive(self, most: int) -> bytes:
        return self.sock.recv(most)

    def _send(self, data: memoryview) -> int:
        return self.sock.send(data)

    def _more(self, _last: int) -> bool:
        return False

    # --- waiting ---

    async def _until(self, call: Callable[[], _T], *, writes: bool = False) -> _T:
        while True:
            try:
                return call()
            except _WRITE:
                await self._wait("out")
            except _READ as error:
                plain = isinstance(error, BlockingIOError)
                await self._wait("out" if plain and writes else "in")

    async def _wait(self, way: str) -> None:
        future = self._loop.create_future()
        waiting = self._waiting[way]
        if not waiting:
            add = self._loop.add_reader if way == "in" else self._loop.add_writer
            add(self.sock.fileno(), self._wake, way)
        waiting.append(future)
        self._at = self._loop.time()
        if self._clock is None:
            self._tick()
        try:
            await future
        finally:
            if future in waiting:  # whoever waited was cancelled
                waiting.remove(future)
                if not waiting:
                    self._stop(way)

    def _tick(self) -> None:
        self._clock = self._loop.call_later(min(self.patience, _LOOK_SECONDS), self._look)

    def _look(self) -> None:
        """End who waits, where nothing was said for too long."""
        self._clock = None
        waiting = [future for some in self._waiting.values() for future in some]
        at = self._at if self.other is None else max(self._at, self.other._at)
        if waiting and self._loop.time() - at < self.patience:
            self._tick()
            return
        for future in waiting:
            if not future.done():
                future.set_exception(TimeoutError())

    def _wake(self, way: str) -> None:
        waiting = self._waiting[way]
        self._stop(way)
        for future in waiting:
            if not future.done():
                future.set_result(None)
        waiting.clear()

    def _stop(self, way: str) -> None:
        if self.sock.fileno() >= 0:
            remove = self._loop.remove_reader if way == "in" else self._loop.remove_writer
            remove(self.sock.fileno())


class UpstreamTls(ReadEnd):
    """The end at a host, which is verified."""

    _tls: ssl.SSLSocket

    async def connect(self, context: ssl.SSLContext, name: str) -> None:
        """Shake hands with the host. Raises ssl.SSLError, and OSError."""
        fd = self.sock.detach()
        plain = socket.socket(fileno=fd)
        plain.setblocking(False)
        self.sock = self._tls = context.wrap_socket(
            plain, server_hostname=name, do_handshake_on_connect=False
        )
        await self._until(self._tls.do_handshake)

    def _receive(self, most: int) -> bytes:
        """As many records as there are: each comes by itself."""
        view, size = memoryview(_buffer)[:most], 0
        while size < most:
            try:
                count = self._tls.recv_into(view[size:])
            except OSError as error:
                if not size:
                    raise
                self._keep(error)
                break
            if not count:  # and it says so again, to who asks once more
                break
            size += count
        return bytes(view[:size])

    async def finish(self) -> None:
        with contextlib.suppress(*BROKEN, ValueError):
            self._tls.unwrap()  # it says so, and does not wait for the other


class ClientTls(ReadEnd):
    """The end at a program of the sandbox's."""

    _tls: SSL.Connection

    async def accept(self, context: SSL.Context, use: Callable[[SSL.Connection], None]) -> None:
        """Shake hands with the program. Raises SSL.Error."""
        self._tls = SSL.Connection(context, self.sock)
        use(self._tls)
        self._tls.set_accept_state()
        await self._until(self._tls.do_handshake)

    async def finish(self) -> None:
        with contextlib.suppress(*BROKEN):
            self._tls.shutdown()

    def _receive(self, most: int) -> bytes:
        try:
            return self._tls.recv(min(most, _RECORD))
        except SSL.ZeroReturnError:
            return b""
        except SSL.SysCallError as error:
            if error.args[0] == -1:  # it ended without a word
                return b""
            raise OSError(error.args[0], str(error.args[1])) from None

    def _send(self, data: memoryview) -> int:
        return self._tls.send(data[:MOST])

    def _more(self, last: int) -> bool:
        return last == _RECORD or self._tls.pending() > 0


def client_context() -> SSL.Context:
    """Return what all sandboxes' ends have in common; each shows a certificate of its own."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    # Many records by one call: what could not be written is asked for again as it was.
    context.clear_mode(_PARTIAL_WRITE)
    # A ticket of one sandbox's is of no use to another.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    context.set_alpn_select_callback(_choose)
    return context


def _choose(_: SSL.Connection, offered: list[bytes]) -> bytes:
    """HTTP/1.1 where it is offered; who insists on another protocol is told so by TLS."""
    return b"http/1.1" if b"http/1.1" in offered else b""


def upstream_context(roots: str) -> ssl.SSLContext:
    """Make a context; ``roots`` are PEM."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if roots:
        context.load_verify_locations(cadata=roots)
    return context
