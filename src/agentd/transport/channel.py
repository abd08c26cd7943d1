"""One request's half of a connection, sans I/O: who may speak, and how much."""

import os
from typing import Any

import msgspec

from agentd.guest import wire
from agentd.model.errors import GuestError, InvalidInput
from agentd.transport.text import safe_text

# Grants are batched: a CREDIT frame a data frame would double the traffic. Where there is much,
# more may be on its way: each grant wakes the agent.
GRANT_AT = wire.INITIAL_WINDOW // 2
WIDE_WINDOW = 1 << 20
# More credit than any window needs; keeps a guest from growing the number for ever.
MAX_CREDIT = 1 << 40
Frame = tuple[int, int, bytes]


def encode_request(kind: int, channel: int, fields: dict[str, Any]) -> bytes:
    """A JSON frame. Raises InvalidInput where it is over the limit of a frame."""
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
    """Credit both ways. Raises GuestError for a frame that a sane agent would not send."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.send_credit = wire.INITIAL_WINDOW
        self._receive_credit = wire.INITIAL_WINDOW
        self._consumed = 0
        self._grant_at = GRANT_AT

    def accept(self, frame: Frame) -> tuple[int, bytes] | None:
        """``(type, payload)`` of a frame that is for the operation; None where it was credit."""
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
        """A data frame, taken off the credit: the caller keeps to ``send_credit``."""
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


def kernel_text(number: int, message: str) -> str:
    """The host's own words for an errno where it has them, else the guest's, made safe."""
    known = os.strerror(number) if 0 < number < 200 else "Unknown"
    return safe_text(message) if known.startswith("Unknown") else known
