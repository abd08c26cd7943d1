"""What a host says over a WebSocket, looked at frame by frame (RFC 6455, 5.2). Pure."""

from collections.abc import Mapping

from agentd.egress.terminator.replacing import Put, Replacer

_MASKED, _LENGTH = 0x80, 0x7F
_LONGER = {126: 2, 127: 8}  # bytes of a length that does not fit into 7 bits


class HostFrames:
    """Replaces texts in what frames carry; each frame goes on whole as soon as it is whole."""

    def __init__(self, texts: Mapping[bytes, Put]) -> None:
        self._payload = Replacer(texts, steady=True)
        self._head = b""
        self._left: int | None = None  # of the frame's payload; None within its head

    def feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        rest = memoryview(data)
        while rest:
            if self._left is None:
                more = _size(self._head) - len(self._head)
                self._head += rest[:more]
                rest = rest[more:]
                if len(self._head) < _size(self._head):
                    continue
                out.append(self._head)
                self._left, self._head = _payload(self._head), b""
            else:
                piece, rest = bytes(rest[: self._left]), rest[self._left :]
                self._left -= len(piece)
                out.append(self._payload.feed(piece))
            if not self._left:
                out.append(self._payload.finish())
                self._left = None
        return b"".join(out)

    def finish(self) -> bytes:
        return self._head + self._payload.finish()


def _size(head: bytes) -> int:
    """Of a frame's head, as far as is known yet."""
    if len(head) < 2:
        return 2
    return 2 + _LONGER.get(head[1] & _LENGTH, 0) + (4 if head[1] & _MASKED else 0)


def _payload(head: bytes) -> int:
    short = head[1] & _LENGTH
    return int.from_bytes(head[2 : 2 + _LONGER[short]], "big") if short in _LONGER else short
