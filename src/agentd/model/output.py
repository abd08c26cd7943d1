"""What a command writes, as whoever follows it reads it: by cursor, without waiting."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from agentd.model.api import ResultView
from agentd.model.errors import TooLarge

STREAMS = ("stdout", "stderr", "pty")
MAX_OUTPUT = 64 << 20  # bytes of a stream at once; what is kept compressed is many times as many


def too_long(process: str, stream: str, start: int) -> TooLarge:
    """Make the refusal of more than MAX_OUTPUT bytes at once."""
    return TooLarge(
        f"{stream} of {process} has over {MAX_OUTPUT} bytes from {start} on",
        remediation="follow it, or begin at a later byte",
    )


class OutputEvent(msgspec.Struct, frozen=True):
    """``kind``: "data"; "lost", bytes that are gone; or "exit", the last of them. ``offset`` is of
    the first byte in its stream, ``length`` how many there are, or were."""

    kind: str
    stream: str = ""
    offset: int = 0
    data: bytes = b""
    length: int = 0
    result: ResultView | None = None  # at the exit; None where nobody saw how it ended


class Output(Protocol):
    """One follower of a command's output, at its own place."""

    def read(self, limit: int) -> Sequence[OutputEvent]:
        """Return what is there now, about ``limit`` bytes at most; never blocks. After the end: an
        event of the kind "exit", then nothing."""

    def close(self) -> None: ...
