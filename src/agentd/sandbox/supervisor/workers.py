"""The threads of a supervisor, a fair part for each of those for whom it is asked something."""

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from agentd.sandbox import guard

Work = Callable[[], object]


class Workers:
    """At most ``size`` at once, and for one caller while it has fewer than are left: alone it gets
    half of them, and there are always some for the next. What has no room waits its turn, which
    goes round the callers. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="supervisor")
        self._lock = threading.Lock()
        self._busy = 0
        self._of: Counter[str] = Counter()
        self._waiting: dict[str, deque[Work]] = {}
        self._closed = False

    def submit(self, whose: str, work: Work) -> None:
        """Have it done. Raises RuntimeError where all is closed."""
        with self._lock:
            if not self._take(whose):
                self._waiting.setdefault(whose, deque()).append(work)
                return
        self._begin(whose, work)

    def close(self) -> None:
        """Drop what waits, and wait for nothing. Idempotent."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, whose: str, work: Work) -> None:
        try:
            self._pool.submit(self._run, whose, work)
        except RuntimeError:  # no more threads can be started: those that are there take it
            if self._closed:
                raise

    def _run(self, whose: str, work: Work) -> None:
        try:
            guard.run(work)
        finally:
            with self._lock:
                self._give_back(whose)
                following = self._following()
            for each in following:
                self._begin(*each)

    # --- under the lock ---

    def _take(self, whose: str) -> bool:
        if self._of[whose] >= self._size - self._busy:
            return False
        self._busy += 1
        self._of[whose] += 1
        return True

    def _give_back(self, whose: str) -> None:
        self._busy -= 1
        self._of[whose] -= 1
        if not self._of[whose]:
            del self._of[whose]

    def _following(self) -> list[tuple[str, Work]]:
        found = []
        for whose in list(self._waiting):
            if self._take(whose):
                queue = self._waiting.pop(whose)
                found.append((whose, queue.popleft()))
                if queue:
                    self._waiting[whose] = queue  # behind the others
        return found
