"""Addresses of a name, looked up in a thread: the resolver may take a minute, and hears no signal
meanwhile."""

import errno
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def addresses(host: str, port: int, wait: Callable[[socket.socket], object]) -> list[Any]:
    """Return what ``socket.getaddrinfo`` does. ``wait`` waits until a socket is readable, or raises
    where nobody wants to know any more. Raises OSError."""
    with suppress(socket.gaierror):  # a number needs no resolver
        return _found(host, port, socket.AI_NUMERICHOST)
    found: list[Any] = []
    failed: list[OSError] = []
    ours, theirs = socket.socketpair()

    def look_up() -> None:
        with theirs:
            try:
                found.extend(_found(host, port))
            except OSError as error:
                failed.append(error)

    with ours:
        try:
            threading.Thread(target=look_up, name="agentd-name", daemon=True).start()
        except RuntimeError as error:  # as many as there may be
            theirs.close()
            raise OSError(errno.EAGAIN, "no thread can be had to look it up in") from error
        wait(ours)
    if failed:
        raise failed[0]
    return found


def _found(host: str, port: int, flags: int = 0) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError:  # as of "a..b"
        raise socket.gaierror(socket.EAI_NONAME, "it is no name of a host") from None
