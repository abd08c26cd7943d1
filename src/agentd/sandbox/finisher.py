"""Frees what ended sandboxes held, after their callers have been answered."""

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

from agentd.sandbox import backends, guard

MAX_WAITING = 64  # beyond it the caller frees at once


class Finisher:
    """Thread-safe. Its thread begins with the first call; ``close`` waits for all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._waiting = 0
        self._thread: threading.Thread | None = None
        self._owner = os.getpid()
        self._closed = False

    def soon(self, call: Callable[[], None]) -> None:
        """Makes ``call`` in the thread, or here where that has too much to do, or has ended."""
        with self._lock:
            later = not self._closed and self._waiting < MAX_WAITING and os.getpid() == self._owner
            if later:
                self._waiting += 1
                self._calls.put(call)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="finisher", daemon=True)
                    self._thread.start()
        if not later:
            call()

    def close(self) -> None:
        """Waits for what there is to do; idempotent. What comes afterwards is done at once."""
        with self._lock:
            self._closed = True
            self._calls.put(None)
        if self._thread is not None and os.getpid() == self._owner:
            self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except OSError:
                pass  # the next sandbox or process removes what is left
            except backends.ANYTHING as error:  # those that follow are freed all the same
                guard.tell(error)
            with self._lock:
                self._waiting -= 1
