"""WebSocket frames as a client has them (RFC 6455), sans I/O: bytes in, messages out.

A hundred lines for the sake of the start: the libraries that do this import for longer than a
whole command line may take. The tests run it against one of them.
"""

import os
import struct
from base64 import b64encode
from hashlib import sha1
from typing import NamedTuple

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
NORMAL = 1000
MAX_MESSAGE = 16 << 20
_MAX_CONTROL = 125
_FIN, _MASK = 0x80, 0x80
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Malformed(ConnectionError):
    """The server broke the protocol; the connection is of no use any more."""


class Message(NamedTuple):
    """``kind`` is TEXT, BINARY, CLOSE, PING or PONG."""

    kind: int
    data: bytes


class Frames:
    def __init__(self) -> None:
        self._buffer = bytearray()
        self._parts = bytearray()
        self._kind = CONTINUATION  # of the message whose parts are coming

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that ``data`` completes. Raises Malformed."""
        self._buffer += data
        found = []
        while (frame := self._frame()) is not None:
            message = self._message(*frame)
            if message is not None:
                found.append(message)
        return found

    def _frame(self) -> tuple[int, bool, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        if first & 0x70:
            raise Malformed("a frame uses an extension that nobody asked for")
        if second & _MASK:
            raise Malformed("a server's frame is masked")
        size, at = second & 0x7F, 2
        if size >= 126:
            at = 4 if size == 126 else 10
            if len(buffer) < at:
                return None
            size = int.from_bytes(buffer[2:at], "big")
        if size > MAX_MESSAGE:
            raise Malformed(f"a frame of {size} bytes is larger than {MAX_MESSAGE}")
        if len(buffer) < at + size:
            return None
        payload = bytes(memoryview(buffer)[at : at + size])
        del buffer[: at + size]
        return first & 0x0F, bool(first & _FIN), payload

    def _message(self, opcode: int, final: bool, payload: bytes) -> Message | None:
        if opcode >= CLOSE:
            if not final or len(payload) > _MAX_CONTROL or opcode > PONG:
                raise Malformed(f"a control frame of the kind {opcode:#x} is not well-formed")
            return Message(opcode, payload)
        if (opcode == CONTINUATION) != (self._kind != CONTINUATION) or opcode > BINARY:
            raise Malformed(f"a frame of the kind {opcode:#x} is out of place")
        if final and opcode != CONTINUATION:
            return Message(opcode, payload)
        self._kind = self._kind or opcode
        self._parts += payload
        if len(self._parts) > MAX_MESSAGE:
            raise Malformed(f"a message is larger than {MAX_MESSAGE} bytes")
        if not final:
            return None
        message = Message(self._kind, bytes(self._parts))
        self._kind, self._parts = CONTINUATION, bytearray()
        return message


def encode(kind: int, data: bytes = b"") -> bytes:
    """Write one whole message as a frame, masked as a client's must be (RFC 6455, 5.3)."""
    size = len(data)
    if size < 126:
        head = struct.pack("!BB", _FIN | kind, _MASK | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", _FIN | kind, _MASK | 126, size)
    else:
        head = struct.pack("!BBQ", _FIN | kind, _MASK | 127, size)
    key = os.urandom(4)
    return head + key + _masked(data, key)


def _masked(data: bytes, key: bytes) -> bytes:
    size = len(data)
    mask = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")).to_bytes(size, "big")


def upgrade() -> tuple[dict[str, str], str]:
    """Return the headers that ask for it, and what must come back as Sec-WebSocket-Accept."""
    key = b64encode(os.urandom(16))
    digest = sha1(key + _GUID, usedforsecurity=False).digest()
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key.decode(),
    }
    return headers, b64encode(digest).decode()
