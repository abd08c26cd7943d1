"""One stream between a unix socket and a port in the guest: its state, credit and buffer."""

import os
import select
import socket
from collections.abc import Sequence

from agentd.vsock.packet import NO_RECEIVE, NO_SEND

# Edge-triggered: both directions are watched by one registration, and what cannot be served now
# (no credit, no room in the ring) does not keep epoll awake.
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_GONE = select.EPOLLHUP | select.EPOLLERR
_READABLE = select.EPOLLIN | select.EPOLLRDHUP | _GONE

_U32 = 0xFFFFFFFF
_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_FLUSH = 64 << 10  # bytes a write: what is left over is moved, not copied


# What the guest is still to be told; plain numbers, for they are touched with every packet.
REQUEST_DUE = 1
RESPONSE_DUE = 2
CREDIT_DUE = 4
ASK_DUE = 8
SHUTDOWN_DUE = 16


class VsockConnection:
    """``window`` is how much the guest may send ahead of what the unix socket took.

    That also bounds the buffer. Other counters are as virtio 1.2, section 5.10.6.3 has them:
    32 bits, running over. Does no I/O but on its own socket.
    """

    __slots__ = (
        *("answered", "appetite", "ask_sent", "buffer", "closed", "dialled", "due", "ended"),
        *("forwarded", "gone", "guest_port", "guest_shut", "host_port", "peer_alloc"),
        *("peer_forwarded", "readable", "requested", "sent", "sock", "told", "unwritable"),
        "window",
    )

    def __init__(self, sock: socket.socket, host_port: int, guest_port: int, window: int) -> None:
        self.sock = sock
        self.host_port = host_port
        self.guest_port = guest_port
        self.window = window
        self.due = 0
        self.dialled = False  # by the guest
        self.closed = False  # not the muxer's any more
        self.requested = False  # the guest has our REQUEST
        self.answered = False  # both sides agreed to it: data may flow
        self.appetite = 1  # how many of them to read into at once
        self.readable = True  # the unix socket may have something, or its end
        self.gone = False  # the far end of the unix socket closed it, both ways
        self.ended = False  # its end was read: nothing more comes for the guest
        self.unwritable = False  # it takes nothing any more
        self.guest_shut = 0  # NO_RECEIVE, NO_SEND: what the guest said
        self.buffer = bytearray()
        self.forwarded = self.told = 0
        self.sent = self.peer_alloc = self.peer_forwarded = 0
        self.ask_sent = False

    @property
    def key(self) -> tuple[int, int]:
        return self.host_port, self.guest_port

    # --- from the host to the guest ---

    @property
    def credit(self) -> int:
        """Counts bytes that the guest has room for; what it says wrongly stops its own stream
        alone."""
        free = self.peer_alloc - ((self.sent - self.peer_forwarded) & _U32)
        return max(free, 0)

    def credited(self, buf_alloc: int, fwd_cnt: int) -> None:
        self.peer_alloc = buf_alloc
        self.peer_forwarded = fwd_cnt
        if self.credit:
            self.ask_sent = False

    @property
    def wants_data(self) -> bool:
        """Tells whether the unix socket may have data that the guest may want."""
        return (
            self.readable and self.answered and not self.ended and not self.guest_shut & NO_RECEIVE
        )

    @property
    def has_turn(self) -> bool:
        """Tells whether it has a use for the guest's receive buffers now."""
        if self.due or self.lost:
            return True
        return self.wants_data and (self.credit > 0 or not self.ask_sent)

    def ask(self) -> None:
        """Ask for credit, once a standstill."""
        if not self.ask_sent:
            self.ask_sent = True
            self.due |= ASK_DUE

    @property
    def shut(self) -> int:
        """Returns the flags of the SHUTDOWN that the guest should have got by now."""
        return (NO_RECEIVE if self.unwritable else 0) | (NO_SEND if self.ended else 0)

    @property
    def lost(self) -> bool:
        """Tells whether the far end is gone, and the guest has all that came from it."""
        return self.gone and not self.wants_data

    def read(self, buffers: Sequence[memoryview]) -> int:
        """Read, and count the bytes: 0 when there are none for now, or no more ever (``ended``)."""
        try:
            count = os.readv(self.sock.fileno(), buffers)
        except BlockingIOError:
            self.readable = False
            return 0
        except OSError:  # ECONNRESET: closed with our data unread
            count = 0
        if not count:
            self.readable, self.ended = False, True
            self.due |= SHUTDOWN_DUE
        self.sent = (self.sent + count) & _U32
        return count

    def noticed(self, events: int) -> None:
        """Take epoll's events."""
        if events & _READABLE:
            self.readable = True
        if events & _GONE:
            self.gone = True

    # --- from the guest to the host ---

    def deliver(self, parts: Sequence[memoryview], length: int) -> bool:
        """Write what the guest sent, and keep what does not go; False when it had no credit."""
        if len(self.buffer) + length > self.window or self.guest_shut & NO_SEND:
            return False
        sent = 0 if self.buffer or self.unwritable else self._write(parts)
        if self.unwritable:
            sent = length
        elif sent < length:
            self.buffer += b"".join(parts)[sent:]
        self._forward(sent)
        return True

    def flush(self) -> None:
        while self.buffer and not self.unwritable:
            with memoryview(self.buffer) as view, view[:_FLUSH] as piece:
                sent = self._write([piece])
            if not sent:
                break
            del self.buffer[:sent]
            self._forward(sent)
        if self.unwritable:
            self._forward(len(self.buffer))
            self.buffer.clear()
        if self.guest_shut & NO_SEND and not self.buffer:
            self._shut(socket.SHUT_WR)

    def shut_by_guest(self, flags: int) -> None:
        """The guest will not receive, or not send, any more; there is no way back."""
        self.guest_shut |= flags & (NO_RECEIVE | NO_SEND)
        if self.guest_shut & NO_RECEIVE:
            self._shut(socket.SHUT_RD)
        self.flush()

    @property
    def finished(self) -> bool:
        """Tells whether the guest wants nothing more of it, and has all its data delivered."""
        return self.guest_shut == NO_RECEIVE | NO_SEND and not self.buffer

    def say(self, text: bytes) -> bool:
        """Write a line of the device's own; False when the far end is gone."""
        return self._write([memoryview(text)]) == len(text)

    def _forward(self, count: int) -> None:
        self.forwarded = (self.forwarded + count) & _U32
        # At half the window: later would stall the guest, and each telling costs it an interrupt.
        # Linux sends no more ahead than its own end of the stream would take, either.
        if ((self.forwarded - self.told) & _U32) >= min(self.window, self.peer_alloc) // 2:
            self.due |= CREDIT_DUE

    def _write(self, parts: Sequence[memoryview]) -> int:
        try:
            return self.sock.sendmsg(parts, [], _SEND_FLAGS)
        except BlockingIOError:
            return 0
        except OSError:  # EPIPE, ECONNRESET: it will never take anything again
            self.unwritable = True
            self.due |= SHUTDOWN_DUE
            return 0

    def _shut(self, how: int) -> None:
        try:
            self.sock.shutdown(how)
        except OSError:  # it is gone already, and epoll says so as well
            self.unwritable = True
