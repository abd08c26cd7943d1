"""One stream to an agent and the channels on it: frames with credit, no wait without a deadline."""

import array
import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.guest import wire
from agentd.model.errors import BackendLost, GuestError, InvalidInput
from agentd.transport.greeting import Greeting
from agentd.transport.text import safe_text

if TYPE_CHECKING:
    from agentd.transport.v1 import V1Connection

# Grants are batched: a CREDIT frame a data frame would double the traffic. Where there is much,
# more may be on its way: each grant wakes the agent.
GRANT_AT = wire.INITIAL_WINDOW // 2
WIDE_WINDOW = 1 << 20
# More credit than any window needs; keeps a guest from growing the number for ever.
MAX_CREDIT = 1 << 40
Frame = tuple[int, int, bytes]


def encode_request(kind: int, channel: int, fields: dict[str, Any]) -> bytes:
    """Make a JSON frame. Raises InvalidInput where it is over the limit of a frame."""
    try:
        frame = wire.encode(kind, channel, msgspec.json.encode(fields))
    except UnicodeEncodeError:
        # A file name that is not UTF-8 has lone surrogates in it; json escapes them.
        frame = wire.encode_json(kind, channel, fields)
    size = len(frame) - wire.HEADER.size
    if size > wire.MAX_PAYLOAD:
        raise InvalidInput(
            f"request of {size} bytes is over the limit of {wire.MAX_PAYLOAD}",
            remediation="pass less in the arguments and the environment",
        )
    return frame


class Channel:
    """Counts credit both ways. Raises GuestError for a frame that a sane agent would not send."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.send_credit = wire.INITIAL_WINDOW
        self._receive_credit = wire.INITIAL_WINDOW
        self._consumed = 0
        self._grant_at = GRANT_AT

    def accept(self, frame: Frame) -> tuple[int, bytes] | None:
        """Return ``(type, payload)`` of a frame for the operation; None where it was credit."""
        kind, number, payload = frame
        if kind == wire.GOAWAY:
            raise GuestError("the agent ended the connection", cause=_reason(payload))
        if number != self.number:
            raise GuestError(f"the agent sent a frame on channel {number}, which is not open")
        if kind == wire.CREDIT:
            self.send_credit = min(self.send_credit + _credit(payload), MAX_CREDIT)
            return None
        if kind in wire.PAID:
            self._receive_credit -= len(payload)
            if self._receive_credit < 0:
                raise GuestError(f"the agent sent {-self._receive_credit} bytes over its credit")
        return kind, payload

    def consumed(self, amount: int) -> bytes:
        """Return the CREDIT frame for bytes that were used, or nothing yet."""
        self._consumed += amount
        if self._consumed < self._grant_at:
            return b""
        grant, self._consumed = self._consumed, 0
        if self._grant_at == GRANT_AT:
            grant += WIDE_WINDOW - wire.INITIAL_WINDOW
            self._grant_at = WIDE_WINDOW // 2
        self._receive_credit += grant
        return wire.encode_credit(self.number, grant)

    def data(self, kind: int, payload: bytes | memoryview) -> bytes:
        """Make a data frame, and take it off the credit: the caller keeps to ``send_credit``."""
        self.send_credit -= len(payload)
        return wire.encode(kind, self.number, bytes(payload))


def _credit(payload: bytes) -> int:
    try:
        return wire.decode_credit(payload)
    except wire.WireError as error:
        raise GuestError("the agent broke the protocol", cause=str(error)) from None


def _reason(payload: bytes) -> str:
    try:
        return safe_text(str(wire.decode_json(payload).get("reason", "no reason given")))
    except wire.WireError:
        return "no reason given"


READ = 64 << 10
WIDE_READ = 256 << 10  # once there is as much as that: both sides wake up less often
_LAST_CHANNEL = (1 << 32) - 1
# A request and all that may be sent before the agent answers it.
_MAX_KEPT = 4 << 20
_SEND_SECONDS = 10.0


def milliseconds(deadline: float | None) -> int | None:
    """Return what is left until ``deadline`` (of time.monotonic) for poll; rounded up, so not a
    spin."""
    if deadline is None:
        return None
    return max(0, min(int((deadline - time.monotonic()) * 1000) + 1, 1 << 30))


def ready(fd: int, events: int, deadline: float | None, wake: int = -1) -> bool:
    """Return whether ``fd`` became so in time; ``wake`` readable ends the wait, as too late."""
    poller = select.poll()
    poller.register(fd, events)
    if wake >= 0:
        poller.register(wake, select.POLLIN)
    return fd in [found for found, _ in poller.poll(milliseconds(deadline))]


def shut(stream: socket.socket) -> None:
    """Shut it down both ways; do nothing where it is closed."""
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)


class Crowded(Exception):
    """Too many descriptors of this user's processes are on their way (unix(7), ETOOMANYREFS)."""


class V2Connection:
    """Owns the socket. Descriptors are sent, and never received: the kernel discards what a guest
    attaches, because recv gives no room for it (unix(7), SCM_RIGHTS)."""

    def __init__(self, stream: socket.socket, greeting: Greeting | None = None) -> None:
        """Without its ``greeting`` the agent is known to speak v2: it is greeted along with the
        first request, and answers ahead of its first event."""
        stream.setblocking(False)
        self._socket = stream
        self._decoder = wire.FrameDecoder(wire.FROM_AGENT)
        self._unsent = wire.HELLO if greeting is None else b""
        self._greeting = greeting or Greeting()
        self._early = self._greeting.rest
        self._read = READ
        self._number = 0
        # Until the agent was heard, where it may be dead.
        self._again: Callable[[], V2Connection | V1Connection] | None = None
        self._kept = bytearray()  # what was sent meanwhile
        self._told: set[int] = set()  # channels whose one answer is still to come
        self.is_crowded = False  # no descriptor could be sent by it, when it was last used

    def fileno(self) -> int:
        return self._socket.fileno()

    def open_channel(self) -> Channel:
        self._number += 1
        return Channel(self._number)

    def send_some(self, data: bytes | bytearray | memoryview) -> int:
        """Send what the kernel takes now; return how many bytes. Raises BackendLost."""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._begin_again(_lost(error))
            return 0
        if self._again is not None:
            self._kept += memoryview(data)[:sent]
            if len(self._kept) > _MAX_KEPT:
                self.settle()
        return sent

    def send(self, data: bytes, deadline: float, fds: Sequence[int] = ()) -> None:
        """Send all; the descriptors ride with the first byte. Raises BackendLost, GuestError, and
        Crowded where nothing was sent."""
        greeting, self._unsent, self.is_crowded = self._unsent, b"", False
        data = greeting + data
        try:
            sent = self._send_descriptors(data, fds) if fds else self.send_some(data)
        except Crowded:  # it may be sent without them
            self._unsent = greeting
            raise
        while sent < len(data):
            if not ready(self.fileno(), select.POLLOUT, deadline):
                raise GuestError("the agent does not read its requests")
            sent += self.send_some(memoryview(data)[sent:])

    def tell(self, channel: Channel, frame: bytes, deadline: float) -> None:
        """Send a request with one answer, which is read with what comes next, and dropped."""
        self._told.add(channel.number)
        self.send(frame, deadline)

    def _send_descriptors(self, data: bytes, fds: Sequence[int]) -> int:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        try:
            return self._socket.sendmsg([data], [rights])
        except BlockingIOError:
            # An honest agent has read all that an idle connection ever carried.
            raise GuestError("the agent does not read its requests") from None
        except OSError as error:
            self.is_crowded = error.errno == errno.ETOOMANYREFS
            raise (Crowded() if self.is_crowded else _lost(error)) from None

    def receive(self) -> list[Frame]:
        """Return the frames that are here now, from one read. Raises BackendLost, GuestError."""
        try:
            data = self._early or self._socket.recv(self._read)
        except BlockingIOError:
            return []
        except OSError as error:
            self._begin_again(_lost(error))
            return []
        if not data and self._again is not None:
            self._begin_again(_closed())
            return []
        self._early = b""
        if self._again is not None:
            self.settle()
        if len(data) == READ:
            self._read = WIDE_READ
        try:
            if not data:
                self._decoder.close()
                raise _closed()
            greeted = self._greeting.line is not None
            frames = self._decoder.feed(data if greeted else self._greeted(data))
        except wire.WireError as error:
            raise GuestError("the agent broke the protocol", cause=str(error)) from None
        return [frame for frame in frames if not self._was_told(frame)] if self._told else frames

    def _was_told(self, frame: Frame) -> bool:
        """Return whether it is the answer to what was told."""
        kind, number, _ = frame
        if kind != wire.EVENT or number not in self._told:
            return False
        self._told.remove(number)
        return True

    def _greeted(self, data: bytes) -> bytes:
        """Return what follows the answer to the greeting."""
        if not self._greeting.feed(data):
            return b""
        if self._greeting.protocol() != 2:
            raise GuestError("the agent does not speak protocol v2")
        return self._greeting.rest

    @property
    def features(self) -> frozenset[str] | None:
        """What the agent offers; None until it has answered the greeting."""
        return self._greeting.features

    def reuse(self, reopen: "Callable[[], V2Connection | V1Connection]") -> None:
        """Use one that idled, and may have died without a sign, as every stream to a machine does
        when that is snapshotted. Until the agent is heard, what is sent is kept, and where the
        stream turns out to be dead it is sent over one that ``reopen`` makes: an agent that has
        said nothing to a request has begun nothing for it."""
        self._again = reopen

    def settle(self) -> None:
        """Send once what is sent from now on."""
        self._again = None
        if self._kept:
            self._kept = bytearray()

    def _begin_again(self, error: BackendLost) -> None:
        """Raises ``error`` where that cannot be: of another agent's process nobody knows what the
        one before had begun."""
        again, kept = self._again, bytes(self._kept)
        self.settle()
        if again is None:
            raise error
        fresh = again()
        if (
            not isinstance(fresh, V2Connection)
            or fresh._greeting.instance != self._greeting.instance
        ):
            fresh.close()
            raise error
        # Under the number that those who wait for it know.
        os.dup2(fresh.fileno(), self.fileno(), inheritable=False)
        self._early = fresh._early
        fresh.close()
        self.send(kept, time.monotonic() + _SEND_SECONDS)

    def idle(self) -> bool:
        """Return whether it can serve another request: nothing unasked for came, and it is open."""
        if self._early or self._number >= _LAST_CHANNEL:
            return False
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        try:
            while poller.poll(0):
                if not self._told or self.receive():
                    return False
        except (BackendLost, GuestError):
            return False
        return True

    def shut(self) -> None:
        """Let whoever uses it see its end. May be called in any thread."""
        shut(self._socket)

    def close(self) -> None:
        self._socket.close()


def _closed() -> BackendLost:
    return BackendLost("the agent closed the connection")


def _lost(error: OSError) -> BackendLost:
    return BackendLost("the connection to the agent broke", cause=error.strerror or str(error))
