"""Receives until a time: a socket's own time limit begins anew with each byte that comes."""

import socket
import time


def limit(sock: socket.socket, end: float) -> None:
    """Have the next operation on a socket end by then, of time.monotonic(). Raises OSError where
    it is later already."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    sock.settimeout(left)


def receive(sock: socket.socket, count: int, end: float) -> bytes:
    """Return what comes of so many bytes, none at the end. Raises OSError."""
    limit(sock, end)
    return sock.recv(count)
