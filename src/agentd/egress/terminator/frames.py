"""What a program says over a WebSocket (RFC 6455), whose payloads it masks. Pure."""

from collections.abc import Callable
from typing import NamedTuple

#: Of a payload that is looked at, and changed, as a whole.
MAX_WHOLE = 64 << 10
_BIT = 4 << 10
_DATA = (0, 1, 2)  # a message's next part, text, bytes
_SHORT, _LONG = 126, 127  # lengths that say how long the length is
_RESERVED = 0x70
Seen = Callable[[bytes], object]


class BadFrame(Exception):
    """It is no frame, or one of an extension that was not agreed on."""


class _FrameHead(NamedTuple):
    size: int
    payload: int
    key: bytes
    data: bool


class ClientFrames:
    """Checks and passes on frames. Not thread-safe. A frame goes on once it is there as a whole; of
    one that is larger than ``MAX_WHOLE`` the pieces do, unchanged."""

    def __init__(self, seen: Seen, put: Callable[[bytes], bytes]) -> None:
        """``seen`` gets the payloads of messages, unmasked, in pieces that follow on each other;
        ``put`` changes one, and not its length. Both may raise."""
        self._seen, self._put = seen, put
        self._held = b""
        self._left = 0  # of the payload of a large frame, and what is known of it
        self._key, self._at, self._is_data = b"", 0, False

    def feed(self, data: bytes) -> bytes:
        """Return what can go on. Raises BadFrame, and what the two raise."""
        out: list[bytes] = []
        # Bit by bit: each frame that is taken copies what is held, and there may be many.
        for begin in range(0, len(data), _BIT):
            self._held += data[begin : begin + _BIT]
            while self._held:
                piece = self._of_large() if self._left else self._next()
                if piece is None:
                    break
                out.append(piece)
        return b"".join(out)

    def finish(self) -> bytes:
        """Return what was begun, at the end."""
        data, self._held = self._held, b""
        return data

    def _of_large(self) -> bytes:
        piece, self._held = self._held[: self._left], self._held[self._left :]
        if self._is_data:
            self._seen(_masked(piece, self._key, self._at))
        self._left -= len(piece)
        self._at += len(piece)
        return piece

    def _next(self) -> bytes | None:
        head = _head(self._held)
        if head is None:
            return None
        end = head.size + head.payload
        if head.payload > MAX_WHOLE:
            raw, self._held = self._held[: head.size], self._held[head.size :]
            self._left, self._key, self._at, self._is_data = head.payload, head.key, 0, head.data
            return raw
        if len(self._held) < end:
            return None
        raw, self._held = self._held[:end], self._held[end:]
        if not head.data:
            return raw
        plain = _masked(raw[head.size :], head.key)
        self._seen(plain)
        changed = self._put(plain)
        return raw if changed == plain else raw[: head.size] + _masked(changed, head.key)


def _head(data: bytes) -> _FrameHead | None:
    """Return the head of the frame that ``data`` begins with; None where that is not all of it.
    Raises BadFrame."""
    if data[0] & _RESERVED:
        raise BadFrame("a frame of an extension that was not agreed on")
    if len(data) < 2:
        return None
    length, at = data[1] & 127, 2
    if length >= _SHORT:
        at += 8 if length == _LONG else 2
        if len(data) < at:
            return None
        length = int.from_bytes(data[2:at], "big")
    key = b""
    if data[1] & 128:
        key, at = data[at : at + 4], at + 4
        if len(key) < 4:
            return None
    return _FrameHead(at, length, key, data[0] & 15 in _DATA)


def _masked(data: bytes, key: bytes, at: int = 0) -> bytes:
    """Mask what stands ``at`` bytes within a payload, or take the mask off."""
    if not key or not data:
        return data
    turned = key[at % 4 :] + key[: at % 4]
    pattern = (turned * (len(data) // 4 + 1))[: len(data)]
    both = int.from_bytes(data, "big") ^ int.from_bytes(pattern, "big")
    return both.to_bytes(len(data), "big")
