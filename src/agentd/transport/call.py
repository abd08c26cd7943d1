"""One operation on a channel: a request, then its events and data, each within a deadline."""

import contextlib
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from agentd.guest import wire
from agentd.model.errors import AgentdError, BackendLost, GuestError, SandboxError
from agentd.transport.connection import Frame, V2Connection, encode_request, ready

_PIECE = 64 << 10
Truly = Callable[[AgentdError], AgentdError]


def as_it_is(error: AgentdError) -> AgentdError:
    return error


@contextlib.contextmanager
def telling(truly: Truly) -> Iterator[None]:
    """Let the error of a broken stream be what it comes of: one of those breaks for any end."""
    try:
        yield
    except SandboxError as error:  # the supervisor's, too, of a wall that it has no more
        told = truly(error)
        if told is error:
            raise
        raise told from error


class WaitEnded(Exception):
    """The caller ended its own wait."""


class AgentCall:
    """Uses one connection, blocking. ``timeout`` is the seconds without any sign of the agent."""

    def __init__(self, connection: V2Connection, timeout: float) -> None:
        self.connection = connection
        self.channel = connection.open_channel()
        self.ended = False
        #: A descriptor that ends every wait when it becomes readable, or -1.
        self.wake = -1
        self._timeout = timeout
        self._queue: deque[tuple[int, bytes]] = deque()
        self._event_came = False
        self._eof_came = False

    def request(self, fields: dict[str, Any]) -> None:
        self.send(encode_request(wire.REQUEST, self.channel.number, fields))

    def send(self, frame: bytes) -> None:
        self.connection.send(frame, self._deadline())

    def next(self, timeout: float | None = None, *, forever: bool = False) -> tuple[int, bytes]:
        """Return the next ``(type, payload)``. ``timeout`` overrides the operation's; or wait
        ``forever``.

        Raises TimeoutError after an own ``timeout``, else GuestError; WaitEnded by ``wake``.
        """
        limit = self._timeout if timeout is None else timeout
        deadline = None if forever else time.monotonic() + limit
        if not self._queue:
            self._wait(lambda: bool(self._queue), deadline, timeout)
        return self._queue.popleft()

    def offered(self, feature: str) -> bool:
        """Return whether the agent said so when it was greeted; waits for that answer."""
        self._wait(lambda: self.connection.features is not None, self._deadline())
        return feature in (self.connection.features or ())

    def send_data(self, data: memoryview, *, forever: bool = False) -> bool:
        """Send DATA frames within the credit; False once the agent has ended the operation."""
        while data:
            if not self._wait_for_credit(forever):
                return False
            piece = data[: min(_PIECE, self.channel.send_credit)]
            try:
                self.send(self.channel.data(wire.DATA, piece))
            except BackendLost:
                # Its reason may be waiting to be read.
                return False
            data = data[len(piece) :]
        return True

    def send_some(self, data: memoryview) -> int | None:
        """Return what the credit allows now, as one DATA frame, and how much that was; None once
        the agent has ended the operation."""
        if self._has_ended():
            return None
        piece = data[: min(_PIECE, self.channel.send_credit)]
        if piece:
            try:
                self.send(self.channel.data(wire.DATA, piece))
            except BackendLost:
                return None
        return len(piece)

    def consumed(self, amount: int) -> None:
        """Let the agent send more for bytes that were used, unless it has ended already."""
        grant = self.channel.consumed(amount)
        if grant and not self._event_came:
            # What it sent before it closed is still to be read, and says more.
            with contextlib.suppress(BackendLost):
                self.send(grant)

    def go_on(self) -> None:
        """Note that the event that ``next`` gave was not the last one."""
        self._event_came = any(kind == wire.EVENT for kind, _ in self._queue)

    def pending(self) -> bool:
        """Return whether ``next`` would find frames without reading."""
        return bool(self._queue)

    def _wait_for_credit(self, forever: bool) -> bool:
        """Wait; False where an event came: nothing more need be sent. Data that comes is queued."""
        if self._has_ended():
            return False
        deadline = None if forever else self._deadline()
        self._wait(lambda: self._event_came or self.channel.send_credit > 0, deadline)
        return not self._event_came

    def _has_ended(self) -> bool:
        """Return whether an event came, as far as one read tells: there may be no end of them."""
        if not self._event_came and ready(self.connection.fileno(), select.POLLIN, 0.0):
            self._read()
        return self._event_came

    def _wait(
        self, over: Callable[[], bool], deadline: float | None, timeout: float | None = None
    ) -> None:
        """Read until it is ``over``, and no longer, whatever else the agent goes on to send."""
        late = False
        while not over():
            found = not late and ready(self.connection.fileno(), select.POLLIN, deadline, self.wake)
            if self.wake >= 0 and ready(self.wake, select.POLLIN, 0.0):
                raise WaitEnded
            if not found:
                if timeout is not None:
                    raise TimeoutError(f"nothing came within {timeout} s")
                raise GuestError("the agent did not answer a request in time")
            late = deadline is not None and time.monotonic() >= deadline
            self._read()

    def _read(self) -> None:
        for frame in self.connection.receive():
            self._accept(frame)

    def _accept(self, frame: Frame) -> None:
        """Queue what the operation must see; its size is bounded by the credit, not its count."""
        accepted = self.channel.accept(frame)
        if accepted is None or (accepted[0] in wire.PAID and not accepted[1]):
            return
        if accepted[0] == wire.DATA_EOF:
            if self._eof_came:
                raise GuestError("the agent ended its data twice")
            self._eof_came = True
        self._event_came = self._event_came or accepted[0] == wire.EVENT
        self._queue.append(accepted)

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout
