"""Requests that nobody waits for any more: the connections that wait for their answers are cut."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")
_here = threading.local()


class Cuttable(Protocol):
    def cut(self) -> None:
        """Have whoever waits for it find that it has ended. Called by any thread."""


class GivenUp(Exception):
    """Whoever asked has gone."""


class Cut:
    """Cuts what threads wait for on behalf of one caller, once that one has gone. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[Cuttable] = set()
        self._gone = threading.Event()

    def run(self, work: Callable[[], T]) -> T:
        """Do ``work``, whose requests are the caller's. Raises GivenUp."""
        _here.cut = self
        try:
            return work()
        finally:
            _here.cut = None

    def set(self) -> None:
        """Idempotent."""
        with self._lock:
            self._gone.set()
            for connection in self._held:
                connection.cut()

    def check(self) -> None:
        """Raise GivenUp where the caller has gone."""
        if self._gone.is_set():
            raise GivenUp

    def sleep(self, seconds: float) -> None:
        """Wait so long, or raise GivenUp once the caller has gone."""
        if self._gone.wait(seconds):
            raise GivenUp

    @contextmanager
    def holding(self, connection: Cuttable) -> Iterator[None]:
        """Have a connection cut in the block. Raises GivenUp."""
        with self._lock:
            self._held.add(connection)
        try:
            self.check()  # who went before has cut none of these
            yield
        finally:
            with self._lock:
                self._held.discard(connection)


class _Never(Cut):
    """Is of a caller that waits itself, and so cannot go."""

    @contextmanager
    def holding(self, connection: Cuttable) -> Iterator[None]:
        yield


_NEVER = _Never()


def of_this_thread() -> Cut:
    return getattr(_here, "cut", None) or _NEVER
