"""What a v2 request becomes: an operation on a channel.

The connection owns the channel: framing, credit, back-pressure. The operation owns everything it
opened, and frees it in ``close``, which is called exactly once on every path.
"""

from collections.abc import Callable
from typing import Protocol

from agentd.guest.loop import Loop


class RequestError(Exception):
    """The request cannot be done: answered as an ``error`` event. ``errno`` is 0 when none fits."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class Channel(Protocol):
    """A request's half of a connection, as the connection offers it to an operation."""

    loop: Loop

    def event(self, name: str, **fields: object) -> None:
        """Send an EVENT frame."""

    def event_lazily(self, name: str, **fields: object) -> None:
        """Sends an EVENT frame that may wait some milliseconds, to leave with the next one."""

    def finish(self, name: str, **fields: object) -> None:
        """Send the last EVENT frame; closes the operation and the channel."""

    def fail(self, error: Exception) -> None:
        """Finish with ``error``: an OSError's or a RequestError's number and text."""

    def send(self, kind: int, data: bytes) -> None:
        """Send a data frame of at most ``credit()`` bytes; it is taken off the credit."""

    def send_eof(self) -> None:
        """Send DATA_EOF."""

    def credit(self) -> int:
        """Returns the bytes of data frames that may be sent now; 0 while the buffer is full."""

    def grant(self, amount: int) -> None:
        """Let the host send so many more bytes on this channel."""


class ChannelOperation(Protocol):
    """Callbacks that the connection makes. None of them may block for long."""

    def on_data(self, kind: int, data: bytes) -> None:
        """Takes a STDIN or DATA frame; grants its length back once it has been consumed."""

    def on_eof(self, kind: int) -> None:
        """Takes STDIN_EOF or DATA_EOF."""

    def on_control(self, request: dict[str, object]) -> None:
        """Takes a CONTROL frame. Raises RequestError to refuse it."""

    def on_credit(self) -> None:
        """Learns that ``channel.credit()`` has become larger than it was."""

    def close(self) -> None:
        """Ends with its channel, which finished, was cancelled, or lost its connection."""


# Starts an operation: (channel, request, descriptors passed with it) -> the operation, or None if
# it has already finished. Raises RequestError or OSError to refuse. Owns the descriptors.
Starter = Callable[[Channel, dict[str, object], list[int]], ChannelOperation | None]


class Quiet:
    """An operation that expects nothing from the host; subclasses override what they use."""

    def on_data(self, kind: int, data: bytes) -> None:
        raise RequestError("this operation takes no data")

    def on_eof(self, kind: int) -> None:
        pass

    def on_control(self, request: dict[str, object]) -> None:
        raise RequestError(f"unknown control {request.get('op')!r}")

    def on_credit(self) -> None:
        pass

    def close(self) -> None:
        pass


def get_str(request: dict[str, object], key: str) -> str:
    """Returns a required string without NUL. Raises RequestError."""
    value = request.get(key)
    if not isinstance(value, str) or "\0" in value:
        raise RequestError(f"{key!r} must be a string without NUL")
    return value


def get_int(request: dict[str, object], key: str, default: int, low: int, high: int) -> int:
    """Returns an optional integer in bounds. Raises RequestError."""
    value = request.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(f"{key!r} must be an integer from {low} to {high}")
    return value


def get_bool(request: dict[str, object], key: str) -> bool:
    """Returns an optional boolean, False by default. Raises RequestError."""
    value = request.get(key, False)
    if not isinstance(value, bool):
        raise RequestError(f"{key!r} must be true or false")
    return value
