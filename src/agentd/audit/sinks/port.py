"""What a sink is."""

from collections.abc import Sequence
from typing import Protocol


class Unsent(Exception):
    """Nothing is wrong with the records: worth another try. ``sent`` went through before."""

    def __init__(self, reason: str, sent: int = 0) -> None:
        super().__init__(reason)
        self.sent = sent


class AuditSink(Protocol):
    """Used by one thread."""

    def send(self, lines: Sequence[bytes]) -> int:
        """Records, as lines of the log; how many of them the other side will never take.

        Bounded in time: 10 s or so. Raises Unsent; OSError is understood as that, none sent.
        """
