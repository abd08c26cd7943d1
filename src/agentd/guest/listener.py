"""Where connections come from: a listening socket, or descriptors passed one a message."""

import os
import socket
from collections.abc import Callable

from agentd.guest.loop import READ, Loop
from agentd.linux.rights import descriptors

BACKLOG = 128
_AGAIN_S = 0.1
# Room for more than the one descriptor expected, so that none is dropped in silence.
_CMSG_BYTES = socket.CMSG_SPACE(16 * 4)


class FdListener:
    """A SEQPACKET socket; each message carries one descriptor: a new connection.

    Its EOF means that nobody can ask any more: ``on_end``. Owns ``sock``.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        accept: Callable[[socket.socket], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._accept = accept
        self._on_end = on_end
        sock.set_inheritable(False)
        loop.watch(sock.fileno(), READ, self._ready)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.forget(self._sock.fileno())
            self._sock.close()

    def _ready(self, _: int) -> None:
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            data, control, _, _ = self._sock.recvmsg(64, _CMSG_BYTES, flags)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, control = b"", []
        fds = descriptors(control)
        for fd in fds:
            adopt(fd, self._accept)
        if not data and not fds:
            self.close()
            self._on_end()


class SocketListener:
    """A listening stream socket (unix, vsock). Owns ``sock``.

    ``accept`` returns whether there is room for more; when not, the backlog waits for ``resume``.
    """

    def __init__(
        self, loop: Loop, sock: socket.socket, accept: Callable[[socket.socket], bool]
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._accept = accept
        sock.set_inheritable(False)
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self.resume()

    def resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.watch(self._sock.fileno(), READ, self._ready)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.forget(self._sock.fileno())
            self._sock.close()

    def _ready(self, _: int) -> None:
        try:
            connection, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:
            # No descriptor is left, say: who is there can wait, and nobody tells when there is one.
            self._loop.forget(self._sock.fileno())
            self._loop.after(_AGAIN_S, self.resume)
            return
        if not self._accept(connection):
            self._loop.forget(self._sock.fileno())


def adopt(fd: int, accept: Callable[[socket.socket], object]) -> None:
    """Hand a received descriptor on as a socket; one that is none is closed."""
    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        return
    if connection.type != socket.SOCK_STREAM:
        connection.close()
        return
    accept(connection)


def unix_socket(path: str) -> socket.socket:
    """Binds one to ``path``, mode 0600. Raises OSError, also when something is there already."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
    except OSError:
        sock.close()
        raise
    return sock


def vsock_socket(port: int) -> socket.socket:
    """Binds one to ``port`` of any CID. Raises OSError where there is no vsock."""
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        sock.bind((socket.VMADDR_CID_ANY, port))
    except OSError:
        sock.close()
        raise
    return sock
