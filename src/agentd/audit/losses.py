"""Events that could not be written: counted until a record of their own says so."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from agentd.model.audit import Event, Kind

_MAX_REASONS = 16  # kinds of errors there are more of than this are "other"


class Lost(msgspec.Struct, frozen=True):
    since: float
    reasons: dict[str, int]

    def event(self) -> Event:
        about = {
            "lost": sum(self.reasons.values()),
            "since": datetime.fromtimestamp(self.since, UTC).isoformat(),
            "reasons": [f"{reason}: {count}" for reason, count in self.reasons.items()],
        }
        return Event(kind=Kind.LOSS, fields=about)


class Losses:
    """Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._since = 0.0
        self._reasons: dict[str, int] = {}
        self.total = 0

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def add(self, count: int, reason: str) -> None:
        with self._guard:
            self.total += count
            self._add(count, reason, self._clock())

    def taken(self) -> Lost | None:
        """Return what no record says yet; the caller writes one, or puts it back."""
        if not self._reasons:
            return None
        with self._guard:
            lost = Lost(self._since, self._reasons)
            self._reasons = {}
        return lost

    def put_back(self, lost: Lost | None) -> None:
        if lost is None:
            return
        with self._guard:
            for reason, count in lost.reasons.items():
                self._add(count, reason, lost.since)
            self._since = lost.since

    def _add(self, count: int, reason: str, when: float) -> None:
        if not self._reasons:
            self._since = when
        if reason not in self._reasons and len(self._reasons) >= _MAX_REASONS:
            reason = "other"
        self._reasons[reason] = self._reasons.get(reason, 0) + count
