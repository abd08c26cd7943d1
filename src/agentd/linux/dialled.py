"""How the guest of a machine passes on what its programs dial: a stream a connection.

A stream begins with a header, which says what was dialled, or that questions of DNS follow. Then
come frames both ways: a length, and as many bytes; the length 0 is the end of that direction. A
stream that is closed before both have ended is a connection that was reset: not every monitor
carries a half-close (Firecracker's vsock takes it for a whole one), and none a reset.

Of questions each frame has a number, which its answer repeats. Standard library only.
"""

import socket
import struct
from collections.abc import Callable, Iterator

#: The host's port that such streams go to.
PORT = 1019
#: Streams that wait for a host which is busy, or whose relay has died: one more is refused.
BACKLOG = 1024
VERSION = 1
TCP4, TCP6, DNS = 4, 6, 53
#: Version, kind, port, and an address of 4 or 16 bytes, from the left.
HEADER = struct.Struct(">BBH16s")
FRAME = struct.Struct(">I")
NUMBER = struct.Struct(">I")  # of a question
MAX_FRAME = 64 << 10
_TURNS = 8  # then others have theirs


class BrokenStream(OSError):
    """The other end does not keep to this, or closed the stream amid a connection: it was reset."""


def header(kind: int, address: bytes = b"", port: int = 0) -> bytes:
    return HEADER.pack(VERSION, kind, port, address)


def parse_header(data: bytes) -> tuple[int, bytes, int]:
    """Returns the kind, the address and the port. Raises BrokenStream."""
    version, kind, port, address = HEADER.unpack(data)
    if version != VERSION or kind not in (TCP4, TCP6, DNS):
        raise BrokenStream("no such header")
    return kind, address[:4] if kind == TCP4 else address, port


class FrameParser:
    """Takes frames apart as they come. ``ended``: the last one has come."""

    __slots__ = ("_head", "_left", "ended")

    def __init__(self) -> None:
        self._head = b""  # what has come of a length
        self._left = 0  # what has not come of a frame
        self.ended = False

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yields pieces of frames, and whether each is its frame's last. Raises BrokenStream."""
        at = 0
        while at < len(data):
            if self.ended:
                raise BrokenStream("something comes after the end")
            if not self._left:
                piece = data[at : at + FRAME.size - len(self._head)]
                at += len(piece)
                self._head += piece
                if len(self._head) == FRAME.size:
                    self._begin()
                continue
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            yield piece, not self._left

    def _begin(self) -> None:
        (self._left,) = FRAME.unpack(self._head)
        self._head = b""
        self.ended = not self._left
        if self._left > MAX_FRAME:
            raise BrokenStream(f"a frame of {self._left} bytes")


class Shuttle:
    """Carries a plain stream over a framed one: both do not block, and are the caller's.

    Bounded: what one end has said is only read where the other has taken what was said before.
    """

    __slots__ = (
        *("_ended", "_framed", "_frames", "_in", "_out", "_plain", "_said", "_shut", "_was_reset"),
    )

    def __init__(
        self,
        framed: socket.socket,
        plain: socket.socket,
        was_reset: Callable[[], bool] = lambda: False,
    ) -> None:
        """``was_reset`` tells, where the plain stream has ended, whether it was reset by that."""
        self._framed, self._plain, self._was_reset = framed, plain, was_reset
        self._frames = FrameParser()
        self._out = memoryview(b"")  # to the framed one
        self._in = memoryview(b"")  # to the plain one
        self._ended = False  # the plain one
        self._said = False  # and the framed one has that
        self._shut = False  # the framed one has ended, and the plain one has that

    @property
    def said(self) -> bool:
        """Tells whether the framed stream has all that the plain one said, and its end."""
        return self._said

    @property
    def finished(self) -> bool:
        """Tells whether both directions have ended."""
        return self._said and self._shut

    def gone(self) -> None:
        """Takes note that nobody is at the framed stream's other end. Raises BrokenStream where
        something was to be said there; what it has said is read all the same."""
        if self._shut and not self._said:
            raise BrokenStream("the stream was closed")

    def move(self) -> bool:
        """Move what can be moved now; True where there may be more, and others have their turn
        first. Raises OSError where an end is broken, or was reset."""
        more_out, more_in = self._pack(), self._unpack()
        return more_out or more_in

    def _pack(self) -> bool:
        for _ in range(_TURNS):
            try:
                while self._out:
                    self._out = self._out[self._framed.send(self._out) :]
                if self._ended:
                    self._said = True
                    return False
                data = self._plain.recv(MAX_FRAME)
            except BlockingIOError:
                return False
            if not data:
                self._ended = True
                if self._was_reset():
                    raise BrokenStream("it was reset")
            self._out = memoryview(FRAME.pack(len(data)) + data)
        return True

    def _unpack(self) -> bool:
        for _ in range(_TURNS):
            try:
                while self._in:
                    self._in = self._in[self._plain.send(self._in) :]
                if self._frames.ended:
                    self._shut_plain()
                    return False
                data = self._framed.recv(MAX_FRAME)
            except BlockingIOError:
                return False
            if not data:
                raise BrokenStream("the stream was closed")
            self._in = memoryview(b"".join(piece for piece, _ in self._frames.feed(data)))
        return True

    def _shut_plain(self) -> None:
        if not self._shut:
            self._shut = True
            self._plain.shutdown(socket.SHUT_WR)
