"""Commands of calls that have ended: their journals stay a while for who follows them."""

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.daemon.commands.listed import Listed

MAX_PARTS = 1024
_PART_SECONDS = 60.0


class EndedParts:
    """Keeps MAX_PARTS of them, for a minute. Thread-safe."""

    def __init__(self, discard: "Callable[[Listed], None]") -> None:
        """``discard`` removes a journal."""
        self._discard = discard
        self._lock = threading.Lock()
        self._ended: deque[Listed] = deque()

    def add(self, listed: "Listed") -> None:
        listed.shorten()
        with self._lock:
            self._ended.append(listed)
            dropped = self._ended.popleft() if len(self._ended) > MAX_PARTS else None
        if dropped is not None:
            self._discard(dropped)

    def forget(self, now: float) -> int:
        """Remove the journals of those that ended a while ago: how many."""
        with self._lock:
            old = [one for one in self._ended if now - (one.ended or now) > _PART_SECONDS]
            for one in old:
                self._ended.remove(one)
        for one in old:
            self._discard(one)
        return len(old)
