"""Addresses of agents, and how to open a stream to one."""

import contextlib
import os
import select
import socket
import time

from agentd.model.errors import BackendLost, InvalidInput
from agentd.transport.connection import ready
from agentd.transport.text import safe_text

RETRY = 0.02
_MAX_ANSWER = 64
_HINT = "use unix:PATH, vsock:CID:PORT or hybrid:PATH:PORT"


def dial(address: str, timeout: float = 10.0) -> socket.socket:
    """Connect a stream; refusals are tried again every 20 ms within ``timeout`` seconds.

    ``hybrid`` is the unix socket of Firecracker's and Cloud Hypervisor's vsock device.
    Raises InvalidInput for the address, BackendLost when nobody answered in time.
    """
    scheme, _, rest = address.partition(":")
    deadline = time.monotonic() + timeout
    last: Exception = TimeoutError("timed out")
    if scheme not in {"unix", "vsock", "hybrid"} or not rest:
        raise InvalidInput(f"address {address!r} is not an agent's", remediation=_HINT)
    while True:
        try:
            return _attempt(scheme, rest, deadline)
        except (OSError, EOFError) as error:
            last = error
        if time.monotonic() + RETRY >= deadline:
            raise BackendLost(f"no agent answers at {address}", cause=str(last))
        time.sleep(RETRY)


def _attempt(scheme: str, rest: str, deadline: float) -> socket.socket:
    if scheme == "unix":
        return _connect(socket.AF_UNIX, rest, deadline)
    path, number = _split(rest)
    if scheme == "vsock":
        if not (path.isascii() and path.isdecimal()):
            raise InvalidInput(f"vsock address {rest!r} names no CID", remediation=_HINT)
        return _connect(socket.AF_VSOCK, (int(path), number), deadline)
    stream = _connect(socket.AF_UNIX, path, deadline)
    try:
        _ask(stream, number, deadline)
    except BaseException:
        stream.close()
        raise
    return stream


def _split(rest: str) -> tuple[str, int]:
    path, _, port = rest.rpartition(":")
    if not path or not (port.isascii() and port.isdecimal()) or int(port) >= 1 << 32:
        raise InvalidInput(f"address {rest!r} names no port", remediation=_HINT)
    return path, int(port)


def _connect(family: int, address: str | tuple[int, int], deadline: float) -> socket.socket:
    stream = socket.socket(family, socket.SOCK_STREAM)
    try:
        stream.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            stream.connect(address)
            return stream
        if family == socket.AF_UNIX:
            # A full backlog: a unix socket does not connect in the background (EAGAIN, unix(7)).
            raise BlockingIOError("the backlog is full")
        if not ready(stream.fileno(), select.POLLOUT, deadline):
            raise TimeoutError("timed out")
        number = stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
    except BaseException:
        stream.close()
        raise
    return stream


def _ask(stream: socket.socket, port: int, deadline: float) -> None:
    """One write, for Firecracker parses what one read brought; its answer is read byte by byte,
    for the agent's own bytes follow it."""
    stream.send(b"CONNECT %d\n" % port)
    answer = bytearray()
    while not answer.endswith(b"\n"):
        if len(answer) >= _MAX_ANSWER:
            raise EOFError("the answer to CONNECT has no end")
        if not ready(stream.fileno(), select.POLLIN, deadline):
            raise TimeoutError("timed out")
        byte = stream.recv(1)
        if not byte:
            raise EOFError("the monitor closed the connection: nothing listens on the port yet")
        answer += byte
    if not answer.startswith(b"OK "):
        raise EOFError(f"the monitor answered {safe_text(answer.decode(errors='replace').strip())}")
