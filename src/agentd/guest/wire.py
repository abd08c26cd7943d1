"""The frames of protocol v2, shared by the agent and the host. Sans I/O; docs/guest-protocol.md.

A frame is a 9-byte header, big-endian ``u32 payload length | u8 type | u32 channel``, and the
payload: JSON for control frames, raw bytes for data frames. 1 MiB of payload at most.
"""

import json
import struct

HEADER = struct.Struct(">IBI")
MAX_PAYLOAD = 1 << 20
HELLO = b'{"agentd":2}\n'
MAX_HELLO_REPLY = 64 << 10
# Bytes of data frames that a receiver accepts on a channel before it has granted more.
INITIAL_WINDOW = 256 << 10
# Descriptors that may wait on one connection for the request that claims them.
MAX_PENDING_FDS = 8

# Host to agent.
REQUEST = 1  # JSON, opens a channel: {"op": ..., ...}
STDIN = 2  # raw
STDIN_EOF = 3  # empty
CONTROL = 4  # JSON, on an open channel: {"op": "signal" | "resize" | "cancel", ...}
# Agent to host.
EVENT = 16  # JSON: {"event": "started" | "failed" | "exited" | "result" | "entry" | ...}
STDOUT = 17  # raw (a PTY's output too)
STDERR = 18  # raw
# Both ways.
DATA = 32  # raw: the bytes of fs.read, fs.write and tcp
DATA_EOF = 33  # empty
CREDIT = 34  # u32: so many more bytes of data frames may be sent on this channel
GOAWAY = 35  # JSON {"reason": ...}, channel 0: the connection ends

FROM_HOST = frozenset({REQUEST, STDIN, STDIN_EOF, CONTROL, DATA, DATA_EOF, CREDIT, GOAWAY})
FROM_AGENT = frozenset({EVENT, STDOUT, STDERR, DATA, DATA_EOF, CREDIT, GOAWAY})
# json.dumps with separators builds an encoder a call, json.loads guesses the bytes' encoding.
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_DECODE = json.JSONDecoder().decode
# Frames whose payload is paid for with credit.
PAID = frozenset({STDIN, STDOUT, STDERR, DATA})


class WireError(Exception):
    """The peer broke the protocol; the message is the reason to state to it."""


def encode(kind: int, channel: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), kind, channel) + payload


def encode_json(kind: int, channel: int, value: dict[str, object]) -> bytes:
    return encode(kind, channel, _ENCODE(value).encode())


def encode_credit(channel: int, amount: int) -> bytes:
    return encode(CREDIT, channel, amount.to_bytes(4, "big"))


def decode_json(payload: bytes) -> dict[str, object]:
    """Decodes a control payload. Raises WireError unless it is one JSON object."""
    try:
        value = _DECODE(payload.decode())
    except (ValueError, RecursionError) as error:
        raise WireError(f"control payload is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise WireError("control payload is not a JSON object")
    return value


def decode_credit(payload: bytes) -> int:
    if len(payload) != 4:
        raise WireError(f"credit payload is {len(payload)} bytes, not 4")
    return int.from_bytes(payload, "big")


class FrameDecoder:
    """Bytes in, frames out: ``(type, channel, payload)``. Holds at most one frame and one read."""

    def __init__(self, accept: frozenset[int]) -> None:
        self._accept = accept
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Returns the frames now complete. Raises WireError on an oversized or unknown one."""
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= HEADER.size:
            length, kind, channel = HEADER.unpack_from(buffer, start)
            if length > MAX_PAYLOAD:
                del buffer[:start]
                raise WireError(f"frame of {length} bytes is over the limit of {MAX_PAYLOAD}")
            if kind not in self._accept:
                raise WireError(f"unknown frame type {kind}")
            end = start + HEADER.size + length
            if len(buffer) < end:
                break
            frames.append((kind, channel, bytes(buffer[start + HEADER.size : end])))
            start = end
        del buffer[:start]
        return frames

    def rest(self) -> bytes:
        """Return what is no frame yet; after an oversized one, that one's header first."""
        return bytes(self._buffer)

    def close(self) -> None:
        """Ends it with its stream. Raises WireError if that ended inside a frame."""
        if self._buffer:
            raise WireError(f"stream ended inside a frame, {len(self._buffer)} bytes left over")
