"""What a sandbox's read connections move: told to the relay as it goes, whose budget it counts
against, and held up to the sandbox's rate."""

import asyncio
import errno
import time
from collections.abc import Callable, Mapping
from typing import Any

#: Bytes of a connection after which they are told.
_TELL = 64 << 10


class TrafficPace:
    """The rate of a sandbox, of all that is read of it. What is moved beyond it is waited for."""

    def __init__(self) -> None:
        self._rate: int | None = None
        self._ahead, self._since = 0.0, time.monotonic()

    def change(self, table: Mapping[str, Any]) -> None:
        """As a table's ``budget`` says from now on, if it has one."""
        self._rate = (table.get("budget") or {}).get("rate")

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
    """Of one connection, which may move ``room`` bytes yet, or, for None, as many as it likes.
    ``tell`` has the relay know what it has moved, and whether there is no more room."""

    def __init__(self, pace: TrafficPace, room: int | None, tell: Callable[[bool], None]) -> None:
        self._pace, self._room, self._tell = pace, room, tell
        self._untold = 0

    async def __call__(self, count: int) -> None:
        """Judge what was read, before it is handed on. Raises OverBudget."""
        if self._room is not None:
            self._room -= count
            if self._room < 0:
                self._tell(True)
                raise OverBudget
        self._untold += count
        if self._untold >= _TELL:
            self._untold = 0
            self._tell(False)
        if seconds := self._pace.wait(count):
            await asyncio.sleep(seconds)
