"""How many lines a second a log may have, of one event and of all."""

import threading
import time
from collections.abc import Callable

_MAX_EVENTS = 512


class _Bucket:
    __slots__ = ("at", "dropped", "tokens")

    def __init__(self, burst: float, now: float) -> None:
        self.tokens = burst
        self.at = now
        self.dropped = 0

    def fill(self, rate: float, burst: float, now: float) -> bool:
        """Return whether there is one to take."""
        self.tokens = min(burst, self.tokens + (now - self.at) * rate)
        self.at = now
        return self.tokens >= 1


class Bound:
    """Bounds lines. Thread-safe. A flood of one event does not hide the others; troubles have a
    bucket of their own, so that no flood of ordinary lines hides them."""

    def __init__(
        self,
        *,
        event: tuple[float, float] = (50, 200),
        whole: tuple[float, float] = (500, 2000),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Lines a second and how many may come at once, of one event and of all."""
        self._event = event
        self._whole = whole
        self._clock = clock
        self._lock = threading.Lock()
        self._events: dict[str, _Bucket] = {}
        self._all = {trouble: _Bucket(whole[1], clock()) for trouble in (False, True)}
        self.dropped = 0

    def admit(self, event: str, *, trouble: bool) -> int | None:
        """Count an event: None where it is one too many, else how many were left out before it."""
        with self._lock:
            now = self._clock()
            bucket = self._bucket(event, now)
            every = self._all[trouble]
            # Both are filled, whichever is empty.
            mine, all_ = bucket.fill(*self._event, now), every.fill(*self._whole, now)
            if not (mine and all_):
                bucket.dropped += 1
                self.dropped += 1
                return None
            bucket.tokens -= 1
            every.tokens -= 1
            left_out, bucket.dropped = bucket.dropped, 0
            return left_out

    def _bucket(self, event: str, now: float) -> _Bucket:
        found = self._events.get(event)
        if found is None:
            if len(self._events) >= _MAX_EVENTS:
                self._events.pop(next(iter(self._events)))  # the one known longest
            found = self._events[event] = _Bucket(self._event[1], now)
        return found
