"""Ends the sandboxes whose walls have ended by themselves."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from agentd.sandbox import guard

_CLOSE_SECONDS = 5.0


class Endings:
    """Takes what it is told from the first moment on, and does it once it is started: a wall may
    end while a daemon comes up. Thread-safe."""

    def __init__(self) -> None:
        self._told: SimpleQueue[tuple[str, str] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def tell(self, wall: str, reason: str) -> None:
        """Note it, without a wait: the supervisor's answers come by the thread that calls this, and
        to end a sandbox takes some."""
        self._told.put((wall, reason))

    def start(self, end: Callable[[str, str], None]) -> None:
        """Call ``end(wall, reason)`` for each, in a thread."""
        self._thread = threading.Thread(target=self._run, args=(end,), name="endings", daemon=True)
        self._thread.start()

    @property
    def works(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """End the thread; what does not come to its end is left to the supervisor. Idempotent."""
        self._told.put(None)
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _run(self, end: Callable[[str, str], None]) -> None:
        while (told := self._told.get()) is not None:
            try:
                end(*told)
            except Exception as error:
                guard.tell(error)
