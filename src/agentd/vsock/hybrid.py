"""Firecracker's hybrid unix socket: ``CONNECT <port>`` in, ``<path>_<port>`` out
(its docs/vsock.md and src/vmm/src/devices/virtio/vsock/unix/muxer.rs)."""

import select
import socket
import time
from collections.abc import Callable, Mapping

from agentd.vsock.muxer import MuxerLimits
from agentd.vsock.poller import Poller

_MAX_LINE = 32
_ACCEPTS = 32  # a turn
_PAUSE = 0.1  # seconds, when descriptors ran out
_MAX_PATH = 107 - len("_4294967295")  # sun_path, unix(7)


class Host:
    """Accepts clients and reads their one line; then ``opened(sock, port)`` owns the socket.

    At the limit the client that has dawdled longest makes room for the next.
    """

    def __init__(
        self,
        listener: socket.socket,
        poller: Poller,
        opened: Callable[[socket.socket, int], None],
        limits: MuxerLimits,
    ) -> None:
        self._listener = listener
        self._poller = poller
        self._opened = opened
        self._limits = limits
        self._lines: dict[socket.socket, tuple[bytearray, float]] = {}  # and until when
        self._paused = 0.0
        listener.setblocking(False)
        self._resume()

    def expire(self, now: float) -> float | None:
        """End those whose line is late; when to come back."""
        if self._paused and self._paused <= now:
            self._resume()
        while self._lines:
            sock, (_, deadline) = next(iter(self._lines.items()))
            if deadline > now:
                return min(deadline, self._paused or deadline)
            self._drop(sock)
        return self._paused or None

    def close(self) -> None:
        self._poller.retire(self._listener)
        for sock in list(self._lines):
            self._drop(sock)

    def _resume(self) -> None:
        self._paused = 0.0
        self._poller.watch(self._listener.fileno(), select.EPOLLIN, self._accept)

    def _accept(self, _: int) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # EMFILE, ENFILE, ENOMEM: the backlog waits, and epoll must not spin
                self._poller.forget(self._listener.fileno())
                self._paused = time.monotonic() + _PAUSE
                return
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if len(self._lines) >= self._limits.half_open:
            self._drop(next(iter(self._lines)))
        self._lines[sock] = bytearray(), time.monotonic() + self._limits.line_seconds
        self._read(sock)
        if sock in self._lines:
            self._poller.watch(sock.fileno(), select.EPOLLIN, lambda _: self._read(sock))

    def _read(self, sock: socket.socket) -> None:
        line = self._lines[sock][0]
        try:
            # A look, then as much as belongs to the line: what follows it is for the guest.
            seen = sock.recv(_MAX_LINE - len(line), socket.MSG_PEEK)
            end = seen.find(b"\n") + 1
            line += sock.recv(end or len(seen)) if seen else b""
        except BlockingIOError:
            return
        except OSError:
            seen = b""
        if line.endswith(b"\n"):
            self._finish(sock, _port(bytes(line)))
        elif not seen or len(line) >= _MAX_LINE:
            self._drop(sock)

    def _finish(self, sock: socket.socket, port: int | None) -> None:
        if port is None:
            self._drop(sock)
            return
        del self._lines[sock]
        self._opened(sock, port)

    def _drop(self, sock: socket.socket) -> None:
        del self._lines[sock]
        self._poller.retire(sock)


def _port(line: bytes) -> int | None:
    """Return the port of a CONNECT line, or None when it is no such line."""
    words = line.split()
    if len(words) < 2 or words[0].lower() != b"connect" or not words[1].isdigit():
        return None
    port = int(words[1])
    return port if port < 1 << 32 else None


class GuestPort:
    """Connects what the guest asks for to ``<path>_<port>``, or to the place of its own that a port
    has; else to nothing."""

    def __init__(self, path: str | None, places: Mapping[int, str] | None = None) -> None:
        """``places``: paths of sockets, by port. Raises ValueError when the path leaves no room for
        a port in a socket's address."""
        if path is not None and len(path.encode()) > _MAX_PATH:
            raise ValueError(f"path {path!r} is longer than {_MAX_PATH} bytes; use a shorter one")
        self._path, self._places = path, dict(places or {})

    def dial(self, port: int) -> socket.socket | None:
        """Dial without waiting: a full backlog refuses, as nobody listening does."""
        place = self._places.get(port) or (self._path and f"{self._path}_{port}")
        if not place:
            return None
        sock = None
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.connect(place)
        except OSError:
            if sock is not None:
                sock.close()
            return None
        return sock
