"""Which places connections of a sandbox wait to be allowed to, and what was answered: the host's
end.

Whoever holds the sandbox says by ``asker`` whom to ask; where nobody does it is refused.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from agentd.egress.table import EgressTable

MAX_OPEN = 16  # questions of a sandbox at a time
MAX_ANSWERS = 256  # that hold
MAX_TEXT = 300  # characters of a reason
NOBODY = "nobody is there to be asked: it takes a daemon"
_MAX_HOST = 253

Place = tuple[str, int]


class AskedPlace(NamedTuple):
    """``host`` is a name, or an address that was dialled by its number; ``rule`` is as written."""

    host: str
    port: int
    rule: str


#: Has it answered by ``AskedPlaces.answer``, later. Never blocks.
Asker = Callable[[AskedPlace], object]


class _Answer(NamedTuple):
    allowed: bool
    reason: str
    until: float | None  # of the monotonic clock; None: for good


class AskedPlaces:
    """Knows the questions of one sandbox. Thread-safe."""

    def __init__(self, tell: Callable[[Mapping[str, Any]], object]) -> None:
        """``tell`` has the relay know an answer."""
        self._tell = tell
        self._lock = threading.Lock()
        self._open: dict[Place, None] = {}
        self._answers: dict[Place, _Answer] = {}
        self.asker: Asker | None = None

    def ask(self, row: Mapping[str, Any]) -> None:
        """Take a connection that waits. Raises KeyError, TypeError, ValueError."""
        host, port = str(row["ask"])[:_MAX_HOST], int(row["port"])
        place, now = (host, port), time.monotonic()
        with self._lock:
            self._drop_old(now)
            known, asker = self._answers.get(place), self.asker
            if known is None and place in self._open:
                return
            why = "" if known is not None else self._hindrance()
            if known is None and not why:
                self._open[place] = None
        if known is not None:
            left = None if known.until is None else known.until - now
            self._say(place, known.allowed, known.reason, left)
        elif why or asker is None:
            self._say(place, False, why, 0.0)
        else:
            asker(AskedPlace(host, port, str(row["rule"])[:MAX_TEXT]))

    def answer(
        self, host: str, port: int, allowed: bool, reason: str, seconds: float | None
    ) -> None:
        """Say whether it is allowed, and for how long that holds: None is for good, 0 for what
        waits now. What nobody asks any more is left alone."""
        place, reason = (host, port), reason[:MAX_TEXT]
        with self._lock:
            if place not in self._open:
                return
            del self._open[place]
            if seconds != 0:
                until = None if seconds is None else time.monotonic() + seconds
                self._answers[place] = _Answer(allowed, reason, until)
        self._say(place, allowed, reason, seconds)

    def refuse_open(self, reason: str) -> None:
        """Refuse what is asked now: nobody will answer it."""
        with self._lock:
            places = list(self._open)
        for host, port in places:
            self.answer(host, port, False, reason, 0.0)

    def keep(self, table: Mapping[str, Any]) -> None:
        """Forget what no rule of ``table`` asks about: the relay judges by that now."""
        with self._lock:
            if not (self._open or self._answers):
                return
            rules = EgressTable(table)
            self._open = {place: None for place in self._open if rules.asks(*place)}
            self._answers = {
                place: found for place, found in self._answers.items() if rules.asks(*place)
            }

    def _hindrance(self) -> str:
        if self.asker is None:
            return NOBODY
        if len(self._open) >= MAX_OPEN:
            return f"{MAX_OPEN} questions of the sandbox wait to be answered"
        if len(self._open) + len(self._answers) >= MAX_ANSWERS:
            return f"{MAX_ANSWERS} places of the sandbox have been asked about"
        return ""

    def _drop_old(self, now: float) -> None:
        self._answers = {
            place: found
            for place, found in self._answers.items()
            if found.until is None or found.until > now
        }

    def _say(self, place: Place, allowed: bool, reason: str, seconds: float | None) -> None:
        host, port = place
        said = {"host": host, "port": port, "allowed": allowed, "reason": reason}
        self._tell({**said, "seconds": seconds})
