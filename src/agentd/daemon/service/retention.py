"""What has ended is kept for a while, to be asked about, and then forgotten."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from agentd.daemon.config.schema import Config
from agentd.daemon.service.keystore import StoredKeys
from agentd.daemon.store.records import ProcessRecord, SandboxRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.sandbox.journal.journals import Journals

_AT_ONCE = 500  # rows in one transaction: others wait for it
_TICK_SECONDS = 60.0
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


class Retention:
    """Forgets what has ended; called now and then by one thread. ``more`` get the time, forget what
    is theirs in steps that others need not wait long for, and tell how much it was."""

    def __init__(
        self,
        config: Callable[[], Config],
        store: SqliteStore,
        journals: Journals,
        keys: StoredKeys,
        clock: Callable[[], float] | None = None,
        more: Sequence[Callable[[float], int]] = (),
    ) -> None:
        self._config = config
        self._store = store
        self._journals = journals
        self._keys = keys
        self._clock = clock or LateClock(lambda: float(config().journal.keep))
        self._more = more
        self._next = 0.0

    def tick(self) -> None:
        """Sweep, if it is time."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _TICK_SECONDS
            self.sweep()

    def sweep(self) -> int:
        """Forget commands and sandboxes that ended longer ago than is kept: how many."""
        oldest = self._clock() - float(self._config().journal.keep)
        gone = 0
        while ended := self._store.write(
            lambda t: t.take_before(ProcessRecord, "ended", oldest, _AT_ONCE)
        ):
            for record in ended:
                with contextlib.suppress(OSError):
                    self._journals.remove(record.journal or f"{record.sandbox}/{record.id}")
            gone += len(ended)
        while count := self._store.write(
            lambda t: t.delete_before(SandboxRecord, "ended", oldest, _AT_ONCE)
        ):
            gone += count
        self._keys.forget(self._clock())
        return gone + sum(forget(self._clock()) for forget in self._more)
