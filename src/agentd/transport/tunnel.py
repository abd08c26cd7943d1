"""A TCP connection to a port inside, carried over the agent's stream."""

import contextlib
import errno
import time
from collections.abc import Callable
from typing import Any

import msgspec

from agentd.guest import wire
from agentd.model import typed
from agentd.model.errors import AgentdError, BackendLost, GuestError
from agentd.transport.call import AgentCall, Truly, as_it_is, telling
from agentd.transport.events import Error, decode, failure


class _Connected(msgspec.Struct, tag="connected", tag_field="event"):
    pass


class _End(msgspec.Struct, tag="end", tag_field="event"):
    pass


_LAST_SECONDS = 5.0  # that ``close`` waits for a server that reads slowly
_EVENTS = typed.decoder(_Connected | _End | Error)


def _nothing() -> None: ...


class Tunnel:
    """Owns its connection. One thread; poll ``fileno`` and ask ``pending`` to multiplex."""

    def __init__(self, call: AgentCall, port: int, truly: Truly = as_it_is) -> None:
        """``truly`` says what an error of it comes of.

        Raises OperationFailed where nothing listens; then the caller closes the connection."""
        self._call = call
        self._port = port
        self._truly = truly
        self.failure: AgentdError | None = None  # that broke it
        self._received_all = False
        self._sent_all = False
        self._ended = False  # the agent has passed on all, and says so
        self.on_close: Callable[[], object] = _nothing  # called by ``close``, once
        call.request({"op": "tcp", "port": port})
        if not isinstance(self._event(*call.next()), _Connected):
            raise GuestError("the agent ended a tunnel before it began")
        call.go_on()

    @property
    def is_over(self) -> bool:
        """Whether both ends have said all."""
        return self._sent_all and self._received_all

    def fileno(self) -> int:
        return self._call.connection.fileno()

    def pending(self) -> bool:
        """Return whether ``recv`` may have something without ``fileno`` being readable."""
        return self._received_all or self._call.pending()

    def send(self, data: bytes) -> None:
        """Send all, as far as the credit carries. Raises BackendLost when the other end closed."""
        if self._sent_all:
            raise BackendLost(f"the tunnel to port {self._port} is closed for sending")
        with telling(self._broken):
            sent = self._call.send_data(memoryview(data), forever=True)
        if not sent:
            self._sent_all = True
            raise BackendLost(f"port {self._port} closed its connection")

    def send_some(self, data: bytes) -> int:
        """Return how many bytes the credit allowed, maybe none: ``fileno`` becomes readable when
        there is more. Raises BackendLost when the other end closed."""
        with telling(self._broken):
            sent = None if self._sent_all else self._call.send_some(memoryview(data))
        if sent is None:
            self._sent_all = True
            raise BackendLost(f"port {self._port} closed its connection")
        return sent

    def recv(self, timeout: float | None = None) -> bytes:
        """Return the next bytes; b"" for ever after the end of file. Raises TimeoutError."""
        with telling(self._broken):
            return self._received(timeout)

    def _broken(self, error: AgentdError) -> AgentdError:
        self.failure = self._truly(error)
        return self.failure

    def _received(self, timeout: float | None) -> bytes:
        while not self._received_all:
            kind, payload = self._call.next(timeout, forever=timeout is None)
            if kind == wire.DATA and payload:
                self._call.consumed(len(payload))
                return payload
            if kind == wire.DATA_EOF:
                self._received_all = True
            elif kind == wire.EVENT:
                if not isinstance(self._event(kind, payload), _End):
                    raise GuestError("the agent sent an event out of place")
                self._received_all = self._sent_all = self._ended = True
            elif kind != wire.DATA:
                raise GuestError(f"the agent sent a frame of type {kind} out of place")
        return b""

    def half_close(self) -> None:
        """Send no more; the rest can still be received."""
        if not self._sent_all:
            self._sent_all = True
            self._call.send(wire.encode(wire.DATA_EOF, self._call.channel.number))

    def close(self) -> None:
        """Close it. Where both ends have said all, what was sent last is passed on first, in a few
        seconds or not at all. Idempotent."""
        if self.is_over and not self._ended:
            self._ended = True
            end = time.monotonic() + _LAST_SECONDS
            with contextlib.suppress(TimeoutError, AgentdError, OSError):
                # The next frame is that event, unless the agent lies.
                while self._call.next(max(end - time.monotonic(), 0))[0] != wire.EVENT:
                    pass
        self._call.connection.close()
        told, self.on_close = self.on_close, _nothing  # it may have this
        told()
        self.failure = None  # its frames have this, too

    def __enter__(self) -> "Tunnel":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _event(self, kind: int, payload: bytes) -> Any:
        if kind != wire.EVENT:
            raise GuestError(f"the agent sent a frame of type {kind} out of place")
        event = decode(_EVENTS, payload)
        if isinstance(event, Error):
            error = failure(event, f"port {self._port}")
            if event.errno == errno.ECONNREFUSED:
                error.remediation = (
                    f"have a server listen on 127.0.0.1:{self._port} inside, or on all addresses; "
                    "one that was just started may need a moment"
                )
            raise error
        return event
