"""A connection to a port inside a sandbox, seen from the event loop.

The service's Port is for one thread: each has one, which carries both directions.
"""

import asyncio
import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable

from agentd.ingest.web.signal import Signal
from agentd.ingest.web.threads import Room
from agentd.model.errors import BackendLost
from agentd.model.port import Port

_AHEAD = 256 << 10  # bytes each way that wait
_PIECE = 64 << 10


class Pipe:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._change = Signal()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._out: deque[bytes] = deque()
        self._out_size = 0
        self._half_close = False
        self._out_broken = False
        self._in: deque[bytes] = deque()
        self._in_size = 0
        self._in_over = False
        self._error: Exception | None = None
        self._closed = False
        self._begun = False  # the thread: it closes ``_wake``
        self._opened = False
        self._task: asyncio.Task[None] | None = None

    async def open(self, room: Room, tunnel: Callable[[], Port]) -> None:
        """Raises what ``tunnel`` does. To be closed whatever it raises."""
        self._task = asyncio.create_task(room.run(self._run, tunnel))
        self._task.add_done_callback(lambda _: self._change.set())
        while not self._opened:
            if self._task.done():
                self._task.result()
                raise BackendLost("the connection ended before it began")
            self._change.clear()
            if not self._opened and not self._task.done():
                await self._change.wait()

    async def send(self, data: bytes) -> None:
        """Waits while much is unsent. What the other end does not take any more is dropped."""
        while self._out_size > _AHEAD and not self._out_broken:
            self._change.clear()
            await self._change.wait(0.5)
        with self._lock:
            if data and not self._out_broken:
                self._out.append(data)
                self._out_size += len(data)
        self._poke()

    async def recv(self) -> bytes:
        """b"" at the end. Raises AgentdError where it broke."""
        while True:
            self._change.clear()
            with self._lock:
                if self._in:
                    data = b"".join(self._in)
                    self._in.clear()
                    self._in_size = 0
                    break
                if self._error is not None:
                    raise self._error
                if self._in_over:
                    return b""
            await self._change.wait()
        self._poke()
        return data

    def half_close(self) -> None:
        """Nothing more is sent, once what waits is."""
        self._half_close = True
        self._poke()

    def abort(self) -> None:
        """Whoever waits is told that it is over."""
        self._closed = True
        self._poke()
        with self._lock:
            wake, self._wake = (self._wake, -1) if not self._begun else (-1, self._wake)
        if wake >= 0:
            os.close(wake)

    async def close(self) -> None:
        self.abort()
        if self._task is not None:
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.exception()  # ``open`` or ``recv`` has raised it

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
        try:
            port = tunnel()
            self._opened = True
            self._change.set()
            while not self._closed and not (self._in_over and self._out_broken):
                self._push(port)
                self._pull(port)
                self._wait(port)
        except Exception as error:
            self._error = error
            if port is None:
                raise
        finally:
            self._in_over = self._out_broken = True
            self._close_wake()
            self._change.set()
            if port is not None:
                port.close()

    def _push(self, port: Port) -> None:
        try:
            while self._out and not self._out_broken:
                sent = port.send_some(self._out[0][:_PIECE])
                if not sent:
                    return
                with self._lock:
                    rest = self._out.popleft()[sent:]
                    if rest:
                        self._out.appendleft(rest)
                    self._out_size -= sent
                self._change.set()
            if self._half_close and not self._out and not self._out_broken:
                self._out_broken = True
                port.half_close()
        except BackendLost:
            # It reads no more; what it has still to say is worth hearing.
            self._out_broken = True
            with self._lock:
                self._out.clear()
                self._out_size = 0
            self._change.set()

    def _pull(self, port: Port) -> None:
        while not self._in_over and self._in_size <= _AHEAD:
            # A port rounds its timeout up: one that is asked too often is slow.
            if not (port.pending() or _is_readable(port)):
                return
            try:
                data = port.recv(0)
            except TimeoutError:
                return
            with self._lock:
                if data:
                    self._in.append(data)
                    self._in_size += len(data)
                else:
                    self._in_over = True
            self._change.set()

    def _wait(self, port: Port) -> None:
        room = not self._in_over and self._in_size <= _AHEAD
        if room and port.pending():
            return
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        # Credit for what is unsent arrives as something to read, too.
        if room or (self._out and not self._out_broken):
            poller.register(port.fileno(), select.POLLIN)
        poller.poll()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)


def _is_readable(port: Port) -> bool:
    poller = select.poll()
    poller.register(port.fileno(), select.POLLIN)
    return bool(poller.poll(0))
