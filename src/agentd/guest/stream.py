"""A nonblocking byte stream to the host: a socket, or a pair of descriptors (stdio, virtio).

Reads are pushed to a ``StreamUser``; writes go out together at the end of a round of the loop.
Descriptors that arrive by SCM_RIGHTS (AF_UNIX only) are close-on-exec from their first moment:
``socket.recv_fds`` forgets the flag.
"""

import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Protocol

from agentd.guest.loop import READ, WRITE, Loop, Timer
from agentd.linux.rights import descriptors

READ_BYTES = 64 << 10
# Outgoing bytes at which producers should stop, and at which they may go on.
HIGH_WATER = 1 << 20
LOW_WATER = 256 << 10
# A peer that lets so much pile up is gone for us.
MAX_PENDING = 128 << 20
# How long a finished stream may take to be flushed and acknowledged by the peer's EOF.
LINGER_S = 2.0
LAZY_S = 0.002
# How much later than the next host's bytes the news may come that a port's host has left: looked at
# so often, and so far apart.
DOUBTS = 10
DOUBT_S = 0.005
# SCM_MAX_FD of the kernel is 253; more than we ever take, so that none is dropped in silence.
_CMSG_BYTES = socket.CMSG_SPACE(253 * 4)
_IOV = 64
# Plain integers, once: ``|`` of two of socket's flags is a call into enum.
_RECEIVE = int(socket.MSG_DONTWAIT)
_RECEIVE_FDS = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class StreamUser(Protocol):
    """The owner of a stream."""

    def on_bytes(self, data: bytes) -> None:
        """Takes what has arrived; descriptors that came with it are in ``stream.take_fds()``."""

    def on_eof(self) -> None:
        """Learns, once at most, that the peer sends no more; it may still read (a half-close)."""

    def on_drained(self) -> None:
        """Learns that ``pending`` was over HIGH_WATER and has fallen to LOW_WATER."""

    def on_lost(self) -> None:
        """Learns, at last, that the stream is closed: the peer is gone or the agent stops."""


class HostStream:
    """Owns its descriptors. ``user`` may be replaced at any time (the handshake does)."""

    def __init__(self, loop: Loop, source: socket.socket | tuple[int, int]) -> None:
        self.loop = loop
        self.user: StreamUser | None = None
        self.on_close: Callable[[], None] | None = None
        # Where one host may follow another unnoticed: starts over with the new one's first bytes.
        self.restart: Callable[[bytes], None] | None = None
        # There, an end of file may be old news: whether a host is connected now.
        self.has_host: Callable[[], bool] | None = None
        self.pending = 0
        self.eof = False
        self.closed = False
        self._sock = source if isinstance(source, socket.socket) else None
        self._fds: list[int] = []
        self._out: deque[bytes | memoryview] = deque()
        self._blocked = False
        self._scheduled = False
        self._lazy: Timer | None = None
        self._was_full = False
        self._paused = False
        self._doubted: Timer | None = None  # an end of file that may be none
        self._finishing = False
        self._linger: Timer | None = None
        self._watched: dict[int, int] = {}
        if isinstance(source, socket.socket):
            source.set_inheritable(False)
            self._read_fd = self._write_fd = source.fileno()
            self._unix = source.family == socket.AF_UNIX
            # A pair's end may share its file description: MSG_DONTWAIT leaves the flag alone.
            self._blocking = (True, True)
        else:
            self._read_fd, self._write_fd = source
            self._unix = False
            self._blocking = (os.get_blocking(source[0]), os.get_blocking(source[1]))
            os.set_blocking(source[0], False)
            os.set_blocking(source[1], False)

    def start(self, user: StreamUser) -> None:
        """Begin to read."""
        self.user = user
        self._rewatch()

    @property
    def write_fd(self) -> int:
        """Returns one to poll for the peer's end; not to write to."""
        return self._write_fd

    def peer_is_gone(self) -> bool:
        """Tells of a vsock whether nothing can be sent any more, which sending nothing shows."""
        if self._sock is None or self._sock.family != socket.AF_VSOCK:
            return False
        try:
            self._sock.send(b"", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    @property
    def full(self) -> bool:
        """Tells whether producers should wait for ``on_drained``."""
        if self.pending >= HIGH_WATER:
            self._was_full = True
            return True
        return False

    def room(self) -> int:
        """Counts bytes until HIGH_WATER; asking for it when there is none brings ``on_drained``."""
        return 0 if self.full else HIGH_WATER - self.pending

    def take_fds(self) -> list[int]:
        """Returns the descriptors received so far, in order; the caller owns them now."""
        taken, self._fds = self._fds, []
        return taken

    def look_again(self) -> None:
        """Ask the kernel anew whether there is something to do: a wake-up may have been lost."""
        for fd, events in self._watched.items():
            self.loop.watch(fd, events, self._ready)

    def pause(self) -> None:
        """Stop reading; the peer is held up by the kernel's buffer."""
        self._paused = True
        self._rewatch()

    def resume(self) -> None:
        self._paused = False
        self._rewatch()

    def write(self, data: bytes, *, lazy: bool = False) -> None:
        """Send after this round of the loop. Dropped when the stream is closed or finishing.

        ``lazy`` bytes wait up to LAZY_S for company: a send of their own wakes the host for little.
        """
        if self.closed or self._finishing or not data:
            return
        self._out.append(data)
        self.pending += len(data)
        if self.pending > MAX_PENDING:
            self.abort()
        elif lazy:
            if self._lazy is None and not self._scheduled:
                self._lazy = self.loop.after(LAZY_S, self._flush)
        elif not (self._scheduled or self._blocked):
            self._scheduled = True
            self.loop.soon(self._flush)

    def finish(self, *, patient: bool = False) -> None:
        """Flush what is pending, say EOF, wait shortly for the peer's, close. No more calls.

        ``patient``: however slowly the peer reads, and nothing of its own is read before that.
        """
        if self.closed or self._finishing:
            return
        self._finishing = True
        self.user = None
        self._paused = patient
        if not patient:
            self._linger = self.loop.after(LINGER_S, self.close)
        self._flush()

    def close(self) -> None:
        """Close now, dropping what is pending; idempotent. Does not call the user."""
        if self.closed:
            return
        self.closed = True
        self.user = None
        for timer in (self._linger, self._lazy, self._doubted):
            if timer is not None:
                timer.cancel()
        for fd in self._watched:
            self.loop.forget(fd)
        self._watched = {}
        for fd in self.take_fds():
            os.close(fd)
        self._out.clear()
        self.pending = 0
        self._close_descriptors()
        if self.on_close is not None:
            self.on_close()

    def drop_pending(self) -> None:
        """Forget what has not been sent."""
        self._out.clear()
        self.pending = 0

    def _close_descriptors(self) -> None:
        if self._sock is not None:
            self._sock.close()
            return
        for fd, blocking in zip((self._read_fd, self._write_fd), self._blocking, strict=True):
            with contextlib.suppress(OSError):
                os.set_blocking(fd, blocking)
        os.close(self._read_fd)
        if self._write_fd != self._read_fd:
            os.close(self._write_fd)

    def abort(self) -> None:
        """Closes it and tells the user ``on_lost``."""
        user = self.user
        self.close()
        if user is not None:
            user.on_lost()

    def _rewatch(self) -> None:
        wanted: dict[int, int] = {}
        if not self.closed:
            if not (self.eof or self._paused or self._doubted is not None):
                wanted[self._read_fd] = READ
            if self._blocked:
                wanted[self._write_fd] = wanted.get(self._write_fd, 0) | WRITE
        if wanted == self._watched:
            return
        for fd in self._watched.keys() - wanted.keys():
            self.loop.forget(fd)
        for fd, events in wanted.items():
            if self._watched.get(fd) != events:
                self.loop.watch(fd, events, self._ready)
        self._watched = wanted

    def _ready(self, events: int) -> None:
        try:
            if events & WRITE and self._out:
                self._flush()
            if events & READ and not self.closed and not self._paused:
                self._read()
        except Exception:  # the loop hears it no more: its peer shall not wait for an answer
            self.abort()
            raise

    def _read(self) -> None:
        try:
            data = self._receive()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        if data:
            if self.user is not None:
                self.user.on_bytes(data)
        elif self.has_host is not None:
            self._doubt(self.has_host, DOUBTS)
            self._rewatch()
        else:
            self._end()

    def _doubt(self, has_host: Callable[[], bool], times: int) -> None:
        """That a host left is told apart from what the next one sends, and may come after it."""

        def look() -> None:
            self._doubted = None
            if self.closed:
                return
            if has_host():
                self._rewatch()
            elif times > 1:
                self._doubt(has_host, times - 1)
            else:
                self._end()

        self._doubted = self.loop.after(DOUBT_S, look)

    def _end(self) -> None:
        self.eof = True
        self._rewatch()
        if self._finishing:
            if not self._out:
                self.close()
        elif self.user is not None:
            self.user.on_eof()

    def _receive(self) -> bytes:
        if self._sock is None:
            return os.read(self._read_fd, READ_BYTES)
        if not self._unix:
            return self._sock.recv(READ_BYTES, _RECEIVE)
        data, control, _, _ = self._sock.recvmsg(READ_BYTES, _CMSG_BYTES, _RECEIVE_FDS)
        if control:
            self._fds += descriptors(control)
        return data

    def _flush(self) -> None:
        self._scheduled = False
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
        if self.closed:
            return
        try:
            while self._out:
                sent = self._send()
                self.pending -= sent
                self._drop(sent)
            self._blocked = False
        except (BlockingIOError, InterruptedError):
            self._blocked = True
        except OSError:
            self.abort()
            return
        if self._finishing and not self._out:
            self._say_eof()
        self._rewatch()
        if self._was_full and self.pending <= LOW_WATER:
            self._was_full = False
            if self.user is not None:
                self.user.on_drained()

    def _send(self) -> int:
        parts = list(islice(self._out, _IOV))
        if self._sock is None:
            return os.writev(self._write_fd, parts)
        return self._sock.sendmsg(parts, [], _SEND)

    def _drop(self, sent: int) -> None:
        out = self._out
        while sent:
            head = out[0]
            if sent < len(head):
                out[0] = memoryview(head)[sent:]
                return
            sent -= len(head)
            out.popleft()

    def _say_eof(self) -> None:
        """Closing with unread input would reset the peer before it has read the last bytes."""
        self._paused = False
        if self._linger is None:
            self._linger = self.loop.after(LINGER_S, self.close)
        if self.eof or self._sock is None:
            self.close()
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
