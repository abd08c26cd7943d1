"""What a sandbox may still move: all its connections together, both ways, in all and a second."""

from collections.abc import Callable, Mapping
from typing import Any

from agentd.egress.relay.loop import EventLoop

#: Bytes that are taken at once where a rate is set, so that others have a part of it; and below
#: which it is waited for more: a byte at a time would cost more than it moves.
_PIECE, _LEAST = 64 << 10, 4096
#: Bytes that the host is told of before they are moved, a sixteenth of all within these bounds: so
#: many of its last the next relay may count which nobody moved, and none that were does it forget.
_LEAST_AHEAD, _MOST_AHEAD = 64 << 10, 1 << 20
#: Bytes that the read connections of a sandbox may have moved which the relay was not told of.
UNTOLD = 32 << 10


class TrafficBudget:
    """``wire`` is a table's ``budget``: ``{"bytes": 1000000 or null, "rate": 1000 or null}``."""

    __slots__ = ("_bytes", "_known", "_loop", "_rate", "_since", "_tell", "_tokens", "spent")

    def __init__(
        self,
        loop: EventLoop,
        wire: Mapping[str, Any],
        spent: int = 0,
        tell: Callable[[int], None] = lambda _: None,
    ) -> None:
        """``tell`` has the host know how many bytes count as moved, should this process die."""
        self._loop, self._tell = loop, tell
        self.spent = self._known = spent
        self._bytes: int | None = None
        self._rate: int | None = None
        self._tokens, self._since = 0.0, loop.now
        self.change(wire)

    def change(self, wire: Mapping[str, Any]) -> None:
        """Let others hold from now on; what was spent is, and no new second begins."""
        had = self._tokens if self._rate is not None else float("inf")
        self._bytes, self._rate = wire["bytes"], wire["rate"]
        self._tokens = min(had, float(self._rate or 0))

    @property
    def over(self) -> str:
        """Return why nothing more is moved, ever; "" where something may be."""
        if self._bytes is None or self.spent < self._bytes:
            return ""
        return f"the sandbox has moved the {self._bytes} bytes of its net_bytes"

    @property
    def left(self) -> int | None:
        """Return bytes that may be moved yet, at whatever rate; None where that is not bounded."""
        return None if self._bytes is None else max(self._bytes - self.spent, 0)

    def room(self, most: int) -> int:
        """Return how many bytes may be taken now, ``most`` at most."""
        if (left := self.left) is not None:
            self._tell_ahead()
            most = min(most, left, max(self._known - self.spent, 0))
        if self._rate is None or most == 0:
            return most
        now = self._loop.now
        self._tokens = min(self._tokens + (now - self._since) * self._rate, self._rate)
        self._since = now
        return min(most, _PIECE, int(self._tokens)) if self._tokens >= self._least() else 0

    def spend(self, count: int) -> None:
        self.spent += count
        self._tokens -= count
        self._tell_ahead()

    def _tell_ahead(self) -> None:
        if self._bytes is None or self._known >= self._bytes:
            return
        ahead = min(max(self._bytes // 16, _LEAST_AHEAD), _MOST_AHEAD)
        if self._known - self.spent < ahead // 2:
            self._known = min(self.spent + ahead, self._bytes)
            self._tell(self._known)

    def seconds(self) -> float:
        """Return until when there may be room again, where the rate is what is in the way."""
        if self._rate is None:
            return 0.0
        return max((self._least() - self._tokens) / self._rate, 0.001)

    def _least(self) -> int:
        return min(_LEAST, self._rate or 1)
