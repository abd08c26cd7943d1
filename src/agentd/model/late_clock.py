"""A clock for what is kept for a while, that nobody's setting of the wall clock cuts short."""

import threading
import time
from collections import deque
from collections.abc import Callable

_LEAP_SECONDS = 60.0  # at once, as no clock is off that is set right now and then


def _boottime() -> float:
    """Seconds that nobody can set; those of a suspended machine count."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LateClock:
    """Tells the time of the wall clock, but where that leaps ahead: then it follows ``hold``
    seconds later. What is kept for so long is kept for so long, whoever sets the clock meanwhile.
    Thread-safe."""

    def __init__(
        self,
        hold: Callable[[], float],
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = _boottime,
    ) -> None:
        self._hold = hold
        self._clock = clock
        self._steady = steady
        self._lock = threading.Lock()
        self._seen = clock() - steady()  # how far the wall clock is ahead of ours
        self._leaps: deque[tuple[float, float]] = deque()  # when, and how far it was before

    def __call__(self) -> float:
        with self._lock:
            now = self._steady()
            ahead = self._clock() - now
            if ahead - self._seen > _LEAP_SECONDS:
                self._leaps.append((now, self._seen))
            self._seen = ahead
            while self._leaps and now - self._leaps[0][0] >= self._hold():
                self._leaps.popleft()
            return now + min([ahead, *(before for _, before in self._leaps)])
