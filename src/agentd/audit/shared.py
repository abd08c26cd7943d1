"""The log of processes that come and go: each takes the lock for one event and no longer."""

import os
import threading
import time
from collections.abc import Callable, Iterable

from agentd.audit.chain import Chain, Keep
from agentd.audit.errors import AuditError
from agentd.audit.lock import Lock
from agentd.audit.log import make_directory
from agentd.audit.record import Entry, entry
from agentd.model.audit import Event, Kind, Position

WAIT_SECONDS = 5.0


class SharedLog:
    """``append`` as of AuditLog, for several processes at a time. Thread-safe.

    ``wait`` is how long, in seconds, another may have the lock. Raises AuditError.
    """

    def __init__(
        self,
        directory: str,
        *,
        keep: Keep | None = None,
        wait: float = WAIT_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        make_directory(directory)
        self._wait = wait
        self._clock = clock
        self._guard = threading.Lock()
        self._lost = 0
        self._lock = Lock(directory)
        self._chain = Chain(directory, keep, clock)

    def append(self, event: Event | Entry, secrets: Iterable[str] = ()) -> Position:
        """On disk when it returns. Raises AuditLocked, AuditError."""
        made = event if isinstance(event, Entry) else entry(event, self._clock(), secrets)
        with self._guard:
            try:
                position = self._append(made)
            except OSError as error:
                self._lost += 1
                raise AuditError(
                    "the audit log cannot be written",
                    cause=error.strerror or str(error),
                    remediation="free space on its disk, or see dmesg",
                ) from error
            except AuditError:
                self._lost += 1
                raise
            self._lost = 0
            return position

    def close(self) -> None:
        with self._guard:
            self._chain.close()
            self._lock.close()

    def _append(self, made: Entry) -> Position:
        self._lock.acquire(self._wait)
        try:
            own = [] if self._chain.is_current() else self._taken_over()
            if self._lost:
                own.append(Event(kind=Kind.LOSS, fields={"lost": self._lost}))
            now = self._clock()
            bodies = [entry(event, now).body for event in own]
            return self._chain.write([*bodies, made.body]).positions[-1]
        finally:
            self._lock.release()

    def _taken_over(self) -> list[Event]:
        """Read the end anew; the records that this wants."""
        cuts = self._chain.load()
        own = [Event(kind=Kind.CUT, fields=cut) for cut in cuts]
        if self._chain.head is None:
            own.append(Event(kind=Kind.OPENED, fields={"pid": os.getpid(), "mode": "shared"}))
        return own
