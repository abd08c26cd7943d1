"""How a connection's ends are closed: orderly, or so that the other side sees an error."""

import contextlib
import socket
import struct

_RESET = struct.pack("=ii", 1, 0)  # struct linger: on, and no time


def shut(sock: socket.socket | None, *, reset: bool) -> None:
    """End it for who has a copy, too."""
    if sock is not None:
        with contextlib.suppress(OSError):
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.shutdown(socket.SHUT_RDWR)


def close(sock: socket.socket, *, reset: bool) -> None:
    """Close it; with ``reset`` the other end sees an error, and nothing lingers here."""
    if reset:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
