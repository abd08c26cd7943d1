"""What a sandbox's read connections move: told to the relay as it goes, whose budget it counts
against, and held up to the sandbox's rate."""

import asyncio
import errno
import time
from collections.abc import Callable, Mapping
from typing import Any

from agentd.egress.relay.budget import UNTOLD


class TrafficPace:
    """What all connections of a sandbox that are read may move together: ``room`` bytes yet, or,
    for None, as many as they like, and so many a second: what is beyond that is waited for.
    ``untold`` is what they moved that the relay does not know of."""

    def __init__(self) -> None:
        self._bytes: int | None = None
        self._rate: int | None = None
        self._ahead, self._since = 0.0, time.monotonic()
        self.room: int | None = None
        self.untold = 0

    def change(self, table: Mapping[str, Any]) -> None:
        """Hold what a table's ``budget`` says from now on, if it has one."""
        budget = table.get("budget") or {}
        self._rate = budget.get("rate")
        if budget.get("bytes") != self._bytes:
            self._bytes, self.room = budget.get("bytes"), None

    def allow(self, room: int | None) -> None:
        """The relay says with a new connection what is left: of what it was told by now."""
        self.room = room if self.room is None or room is None else min(self.room, room)

    def wait(self, count: int) -> float:
        """Return the seconds to wait for that ``count`` bytes were moved."""
        if self._rate is None:
            return 0.0
        now = time.monotonic()
        self._ahead = max(self._ahead - (now - self._since) * self._rate, 0.0) + count
        self._since = now
        return max(self._ahead / self._rate - 1, 0.0)  # a second's go at once


class OverBudget(OSError):
    """There was no room for what was read."""

    def __init__(self) -> None:
        super().__init__(errno.EDQUOT, "the sandbox has moved the bytes of its net_bytes")

    def __str__(self) -> str:
        return str(self.strerror)


class ConnectionMeter:
    """Of one connection. ``tell`` has the relay know what it has moved, and whether there is no
    more room."""

    def __init__(self, pace: TrafficPace, tell: Callable[[bool], None]) -> None:
        self._pace, self._tell = pace, tell
        self._untold = 0

    async def __call__(self, count: int) -> None:
        """Judge what was read, before it is handed on. Raises OverBudget."""
        pace = self._pace
        if pace.room is not None:
            pace.room -= count
            if pace.room < 0:
                self._tell(True)
                raise OverBudget
        self._untold += count
        pace.untold += count
        if pace.untold >= UNTOLD:
            self.told()
            self._tell(False)
        if seconds := pace.wait(count):
            await asyncio.sleep(seconds)

    def told(self) -> None:
        """Note that the relay knows what the connection has moved."""
        self._pace.untold -= self._untold
        self._untold = 0
