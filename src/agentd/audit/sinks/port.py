"""What a sink is."""

from collections.abc import Sequence
from typing import Protocol


class Unsent(Exception):
    """Nothing is wrong with the records: worth another try. ``sent`` went through before."""

    def __init__(self, reason: str, sent: int = 0) -> None:
        super().__init__(reason)
        self.sent = sent


class Rejected(Exception):
    """The other side will never take ``count`` records of the batch; the others went through."""

    def __init__(self, reason: str, count: int) -> None:
        super().__init__(reason)
        self.count = count


class AuditSink(Protocol):
    """Used by one thread."""

    def send(self, lines: Sequence[bytes]) -> None:
        """Take records, as lines of the log.

        Bounded in time: 10 s or so. Raises Rejected, and Unsent; OSError is understood as that,
        none sent.
        """
