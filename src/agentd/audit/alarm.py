"""What wakes the log's own thread: something to do at once, or something that is due later."""

import contextlib
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue


class Alarm:
    """One thread waits; any may ring."""

    def __init__(self) -> None:
        # Whether at once. An Event's lock could stay locked where a signal's handler raises within
        # ``set``.
        self._rings: SimpleQueue[bool] = SimpleQueue()
        self._dozes = False  # who waits is about to look, by itself

    def ring(self) -> None:
        self._rings.put(True)

    def ring_when_due(self) -> None:
        # Who dozes need not be woken: it looks afterwards.
        if not self._dozes:
            self._rings.put(False)

    def wait(self, due: Callable[[], float]) -> None:
        """Until it rings; where that was not at once, until ``due()`` by time.monotonic as well."""
        urgent = self._rings.get()
        self._dozes = True
        while not urgent and (left := due() - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                urgent = self._rings.get(timeout=left)
        self._dozes = False
        with contextlib.suppress(Empty):
            while True:
                self._rings.get_nowait()
