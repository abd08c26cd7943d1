"""The first line of a stream: protocol v2, or v1 where the agent knows no other."""

import select
import socket
import time

import msgspec

from agentd.guest import wire
from agentd.model import typed
from agentd.model.errors import BackendLost, GuestError
from agentd.transport.connection import Connection, ready
from agentd.transport.text import safe_text
from agentd.transport.v1 import V1Connection


class _Reply(msgspec.Struct):
    agentd: int | None = None
    exit_code: int | None = None
    error: str | None = None


_DECODER = typed.decoder(_Reply)


def greet(stream: socket.socket, timeout: float) -> Connection | V1Connection:
    """Agree on a protocol within ``timeout`` seconds; owns ``stream`` and closes it on failure.

    Raises BackendLost when the stream ends and GuestError for anything else than a greeting.
    """
    try:
        stream.setblocking(False)
        deadline = time.monotonic() + timeout
        _send(stream, deadline)
        line, rest = _read_line(stream, deadline)
        return _choose(stream, line, rest)
    except OSError as error:
        stream.close()
        raise BackendLost("the agent cannot be greeted", cause=str(error)) from None
    except BaseException:
        stream.close()
        raise


def _send(stream: socket.socket, deadline: float) -> None:
    view = memoryview(wire.HELLO)
    while view:
        if not ready(stream.fileno(), select.POLLOUT, deadline):
            raise GuestError("the agent does not read its greeting")
        view = view[stream.send(view) :]


def _read_line(stream: socket.socket, deadline: float) -> tuple[bytes, bytes]:
    """The line without its newline, and what was read after it."""
    buffer = bytearray()
    while True:
        if not ready(stream.fileno(), select.POLLIN, deadline):
            raise GuestError("the agent did not answer the greeting in time")
        data = stream.recv(wire.MAX_HELLO_REPLY)
        if not data:
            raise BackendLost("the agent closed the connection before its greeting")
        start = len(buffer)
        buffer += data
        end = buffer.find(b"\n", start)
        if (len(buffer) if end < 0 else end) > wire.MAX_HELLO_REPLY:
            raise GuestError(f"the agent's greeting is over {wire.MAX_HELLO_REPLY} bytes")
        if end >= 0:
            return bytes(buffer[:end]), bytes(buffer[end + 1 :])


def _choose(stream: socket.socket, line: bytes, rest: bytes) -> Connection | V1Connection:
    try:
        reply = _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        raise GuestError("the agent's greeting is malformed", cause=safe_text(str(error))) from None
    if reply.agentd == 2:
        return Connection(stream, rest)
    if reply.exit_code == -1 and (reply.error or "").startswith("Invalid request") and not rest:
        return V1Connection(stream)
    raise GuestError("the agent speaks neither protocol v2 nor v1")
