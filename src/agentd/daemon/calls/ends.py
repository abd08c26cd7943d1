"""Ends calls that are waited for, and tells those who wait."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from agentd.model import context


class Ends:
    """Knows the calls that are waited for, and ends them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writers: set[int] = set()

    @contextmanager
    def one(self, gone: context.Gone = context.NEVER) -> Iterator[int]:
        """Yield a descriptor, the block's own, that is readable once the call is to end, or who
        waits for it has ``gone``."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        with self._lock:
            self._writers.add(writer)
        try:
            with gone.telling(lambda: os.write(writer, b"e")):
                yield reader
        finally:
            with self._lock:
                self._writers.remove(writer)
            os.close(writer)
            os.close(reader)

    def end(self) -> None:
        """End those that run now; idempotent."""
        with self._lock:
            for writer in self._writers:
                os.write(writer, b"e")

    def running(self) -> int:
        with self._lock:
            return len(self._writers)
