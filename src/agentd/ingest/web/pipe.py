"""A connection to a port inside a sandbox, seen from the event loop.

The service's Port is for one thread: each has one, which carries both directions.
"""

import asyncio
import contextlib
import os
import select
import threading
from collections.abc import AsyncIterator, Callable

from agentd.ingest.web.bridge import Bridge
from agentd.ingest.web.exchange import D, WebRequest
from agentd.ingest.web.rooms import Room
from agentd.ingest.web.signal import Signal
from agentd.model.errors import BackendLost
from agentd.model.port import Port

_AHEAD = 256 << 10  # bytes each way that wait
_PIECE = 64 << 10
_LAST_SECONDS = 5.0  # for a server that reads slowly


class Pipe:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._up: Bridge[bytes] = Bridge(_AHEAD, self._poke)  # to the port
        self._down: Bridge[bytes] = Bridge(_AHEAD, self._poke)
        self._rest = b""  # of what is being sent
        self._in_over = False
        self._begun = False  # the thread: it closes ``_wake``
        self._opened = False
        self._change = Signal()  # of ``_opened``, or the call's end
        self._call: asyncio.Future[None] | None = None

    async def open(self, room: Room, tunnel: Callable[[], Port]) -> None:
        """Open it, in a thread of ``room``. Raises what ``tunnel`` does, Full; close it anyhow."""
        self._call = room.run(self._run, tunnel)
        self._call.add_done_callback(lambda _: self._change.set())
        await self._change.wait()
        if not self._opened:
            self._call.result()
            raise BackendLost("the connection ended before it began")

    async def send(self, data: bytes) -> None:
        """Send; wait while much is unsent. What the other end does not take any more is dropped."""
        if data:
            await self._up.put(data, len(data))

    async def recv(self) -> bytes:
        """Return what came; b"" at the end. Raises AgentdError where it broke."""
        return b"".join(await self._down.take() or ())

    def half_close(self) -> None:
        """Send nothing more, once what waits is sent."""
        self._up.end()

    async def finish(self) -> None:
        """Wait, once both ends have said all, until the port has it; for a few seconds at most."""
        if self._call is not None:
            await asyncio.wait([self._call], timeout=_LAST_SECONDS)

    def abort(self) -> None:
        """End it: those who wait are told."""
        self._up.close()
        self._down.close()
        self._down.end()
        with self._lock:
            wake, self._wake = (self._wake, -1) if not self._begun else (-1, self._wake)
        if wake >= 0:
            os.close(wake)

    async def close(self) -> None:
        self.abort()
        if self._call is not None:
            await asyncio.wait([self._call])
            if not self._call.cancelled():
                self._call.exception()  # ``open`` has raised it

    def _poke(self) -> None:
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _close_wake(self) -> None:
        with self._lock:
            wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)

    # --- in the thread ---

    def _run(self, tunnel: Callable[[], Port]) -> None:
        with self._lock:
            self._begun = self._wake >= 0
        if not self._begun:
            return
        port: Port | None = None
        failure: Exception | None = None
        try:
            port = tunnel()
            self._opened = True
            self._change.set()
            while not (self._down.closed or self._is_over):
                self._push(port)
                self._pull(port)
                if not self._is_over:
                    self._wait(port)
        except Exception as error:
            failure = error
            if port is None:
                raise
        finally:
            self._up.close()
            self._down.end(failure)
            self._close_wake()
            if port is not None:
                port.close()

    @property
    def _is_over(self) -> bool:
        """Whether both ends have said all, and the port was given it."""
        return self._in_over and self._up.closed

    def _push(self, port: Port) -> None:
        try:
            while not self._up.closed:
                self._rest = self._rest or self._up.next() or b""
                if not self._rest:
                    if self._up.is_over:
                        self._up.close()
                        port.half_close()
                    return
                sent = port.send_some(self._rest[:_PIECE])
                if not sent:
                    return
                self._rest = self._rest[sent:]
        except BackendLost:
            # It reads no more; what it has still to say is worth hearing.
            self._rest = b""
            self._up.close()

    def _pull(self, port: Port) -> None:
        while not self._in_over and not self._down.is_full:
            # A port rounds its timeout up: one that is asked too often is slow.
            if not (port.pending() or _is_readable(port)):
                return
            try:
                data = port.recv(0)
            except TimeoutError:
                return
            if data:
                self._down.offer(data, len(data))
            else:
                self._in_over = True
                self._down.end()

    def _wait(self, port: Port) -> None:
        room = not self._in_over and not self._down.is_full
        if room and port.pending():
            return
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        # Credit for what is unsent arrives as something to read, too.
        if room or self._rest:
            poller.register(port.fileno(), select.POLLIN)
        poller.poll()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)


@contextlib.asynccontextmanager
async def piped(request: WebRequest[D], open_port: Callable[[], Port]) -> AsyncIterator[Pipe]:
    """Open a connection for the block; it ends with that, or once the client has gone. Raises what
    ``open_port`` does, and Full."""
    pipe = Pipe()
    request.link.on_lost(pipe.abort)
    try:
        await pipe.open(request.web.threads.tunnels, open_port)
        yield pipe
    finally:
        request.link.forget(pipe.abort)
        await pipe.close()


def _is_readable(port: Port) -> bool:
    poller = select.poll()
    poller.register(port.fileno(), select.POLLIN)
    return bool(poller.poll(0))
