"""The log and the receipts of processes that come and go: each takes the lock for one event, or
one receipt, and no longer."""

import os
import threading
import time
from collections.abc import Callable, Iterable

from agentd.audit import read
from agentd.audit.chain import Chain, Keep
from agentd.audit.errors import AuditError
from agentd.audit.lock import Lock
from agentd.audit.log import make_directory
from agentd.audit.receipts import MAX_BYTES, ReceiptStore, failed, find, newest
from agentd.audit.record import LogEntry, decode, entry
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
        self.directory = directory
        self._wait = wait
        self._clock = clock
        self._guard = threading.Lock()
        self._lost = 0
        self._lock = Lock(directory)
        self._chain = Chain(directory, keep, clock)

    def append(self, event: Event | LogEntry, secrets: Iterable[str] = ()) -> Position:
        """Write it: on disk when this returns. Raises AuditLocked, AuditError."""
        made = event if isinstance(event, LogEntry) else entry(event, self._clock(), secrets)
        with self._guard:
            try:
                position = self._append(made)
            except OSError as error:
                self._lost += 1
                self._chain.close()  # what was owed is looked for again
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

    def seq(self) -> int:
        """Return the number of the last record; 0 where there is none. Raises AuditError."""
        found = read.tail(self.directory, 1)
        return decode(found[0]).seq if found else 0

    def close(self) -> None:
        with self._guard:
            self._chain.close()
            self._lock.close()

    def _append(self, made: LogEntry) -> Position:
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
        own = self._chain.load()
        if self._chain.head is None:
            own.append(Event(kind=Kind.OPENED, fields={"pid": os.getpid(), "mode": "shared"}))
        return own


class SharedReceipts(ReceiptStore):
    """Receipts that several processes write to at a time."""

    def __init__(self, directory: str, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(directory, max_bytes)
        self._lock = Lock(directory)
        self._turn = threading.Lock()

    def put(self, receipt_id: str, envelope: bytes) -> None:
        """Put it as ReceiptStore does. Raises AuditLocked, too, where another keeps the lock."""
        with self._turn:
            self._lock.acquire(WAIT_SECONDS)
            try:
                self._follow()
                super().put(receipt_id, envelope)
            except OSError as error:
                raise failed(self._directory, error) from error
            finally:
                self._lock.release()

    def get(self, receipt_id: str) -> bytes | None:
        return super().get(receipt_id) or find(self._directory, receipt_id)

    def close(self) -> None:
        super().close()
        self._lock.close()

    def _load(self) -> None:
        """Not before it is our turn: another's line may be half written."""

    def _follow(self) -> None:
        """Read what the others wrote since."""
        if self._fd >= 0 and self._number == newest(self._directory):
            self._read_on()
            return
        super().close()
        self._offsets, self._size = {}, 0
        super()._load()
