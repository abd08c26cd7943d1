"""What other threads want of a command, done by the one that drives it: its stream to the agent has
one owner."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future


class Errands:
    """Thread-safe but for ``run``, which belongs to the driving thread."""

    def __init__(self, over: Callable[[], Exception]) -> None:
        """``over`` makes what is raised once nothing is done any more."""
        self._over = over
        self._wanted: queue.SimpleQueue[tuple[Callable[[], object], Future[None]]]
        self._wanted = queue.SimpleQueue()
        self._lock = threading.Lock()  # of ``wake``
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def do(self, work: Callable[[], object]) -> None:
        """Waits until it is done. Raises what it raises, and ``over``."""
        done: Future[None] = Future()
        with self._lock:
            if self.wake < 0:
                raise self._over()
            self._put(work, done)
        done.result()

    def leave(self, work: Callable[[], object]) -> None:
        """Never waits; after the end it is left out."""
        with self._lock:
            if self.wake >= 0:
                self._put(work, Future())

    def run(self) -> None:
        """Do all that is wanted now."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake)
        while True:
            try:
                work, done = self._wanted.get_nowait()
            except queue.Empty:
                return
            try:
                work()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def close(self) -> None:
        """Do nothing any more; idempotent."""
        with self._lock:
            wake, self.wake = self.wake, -1
        if wake >= 0:
            os.close(wake)
        while not self._wanted.empty():
            self._wanted.get_nowait()[1].set_exception(self._over())

    def _put(self, work: Callable[[], object], done: "Future[None]") -> None:
        self._wanted.put((work, done))
        os.eventfd_write(self.wake, 1)
