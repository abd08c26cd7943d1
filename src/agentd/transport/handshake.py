"""The first line of a stream: protocol v2, or v1 where the agent knows no other."""

import select
import socket
import time

from agentd.guest import wire
from agentd.model.errors import BackendLost, GuestError
from agentd.transport.connection import V2Connection, ready
from agentd.transport.greeting import Greeting
from agentd.transport.v1 import V1Connection


def greet(stream: socket.socket, timeout: float) -> V2Connection | V1Connection:
    """Agree on a protocol within ``timeout`` seconds; owns ``stream`` and closes it on failure.

    Raises BackendLost when the stream ends and GuestError for anything else than a greeting.
    """
    try:
        stream.setblocking(False)
        deadline = time.monotonic() + timeout
        _send(stream, deadline)
        greeting = _read(stream, deadline)
        if greeting.protocol() == 2:
            return V2Connection(stream, greeting)
        return V1Connection(stream)
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


def _read(stream: socket.socket, deadline: float) -> Greeting:
    greeting = Greeting()
    while True:
        if not ready(stream.fileno(), select.POLLIN, deadline):
            raise GuestError("the agent did not answer the greeting in time")
        data = stream.recv(wire.MAX_HELLO_REPLY)
        if not data:
            raise BackendLost("the agent closed the connection before its greeting")
        if greeting.feed(data):
            return greeting
