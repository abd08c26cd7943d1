"""The log of a daemon: many threads append, and share an fsync(2).

Whoever comes first leads: it writes its event, and then the first of those that came meanwhile
leads, with all of them. So one alone pays for no switch of threads, which costs as much as the
fsync. Where nobody waits for the first event, the thread leads: at once, or where it was submitted
lazily once it is some milliseconds old, by when it mostly went along with one that is waited for.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import msgspec

from agentd.audit.alarm import Alarm
from agentd.audit.chain import Chain, Keep
from agentd.audit.errors import AuditBusy, AuditError, LogDamaged
from agentd.audit.lock import Lock
from agentd.audit.losses import Losses
from agentd.audit.record import Entry, entry
from agentd.audit.sinks.feeder import Feeder
from agentd.model.audit import Event, Kind, Position

if TYPE_CHECKING:
    from agentd.audit.sinks.port import AuditSink

MAX_WAITING = 8192
MAX_WAITING_BYTES = 64 << 20
MAX_BATCH = 512
MAX_BATCH_BYTES = 1 << 20
LAZY_SECONDS = 0.005
_RETRY_SECONDS = 1.0
CLOSE_SECONDS = 5.0  # for what the sinks have not sent yet


class Counts(msgspec.Struct, frozen=True):
    """Since it was opened: ``records`` share ``commits``, which are syncs; ``failures`` the disk
    refused, and ``lost`` events with them; ``retire_failures`` are old files that could not be
    deleted."""

    commits: int = 0
    records: int = 0
    failures: int = 0
    lost: int = 0
    retire_failures: int = 0
    unsent: int = 0  # that sinks have dropped


class _Job:
    """Done when it has a ``position`` or an ``error``."""

    __slots__ = (
        "body", "due", "error", "future", "leads", "may_lead", "position", "ready", "synced",
    )  # fmt: skip

    def __init__(
        self,
        body: bytes,
        future: "Future[Position] | None" = None,
        *,
        may_lead: bool = False,
        synced: bool = True,
    ) -> None:
        self.body = body
        self.synced = synced
        self.future = future
        self.due = 0.0  # by time.monotonic, before which the thread leaves it to others
        self.may_lead = may_lead  # somebody waits for ``ready`` who can write a batch
        self.leads = False  # and is to write the next one
        self.ready = threading.Lock()  # let go once: when it is done, or when it leads
        self.ready.acquire()
        self.position: Position | None = None
        self.error: OSError | AuditError | None = None


class AuditLog:
    """The only writer of ``directory``, until ``close``.

    ``sinks`` get every record as well, by name; they never hold up the log. Raises AuditLocked,
    AuditError.
    """

    def __init__(
        self,
        directory: str,
        *,
        keep: Keep | None = None,
        sinks: "dict[str, AuditSink] | None" = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self._clock = clock
        self._queue: deque[_Job] = deque()
        self._queued_bytes = 0
        self._guard = threading.Lock()  # of the queue
        self._led = False  # somebody takes from the queue and writes, or is about to
        self._thread_leads = False
        self._stale = False  # what is on the disk must be looked at
        self._sync_due = 0.0  # by when what is in the file alone must be on disk, if anything is
        self._alarm = Alarm()  # of the thread
        self._closed = False
        self.damage = ""  # what is wrong with what was written, until it is mended
        self._losses = Losses(clock)
        self._counts = Counts()
        self._lock, self._chain = _open(directory, keep, clock)
        self._feeders = [Feeder(name, sink, self._note) for name, sink in (sinks or {}).items()]
        try:
            opened = Event(kind=Kind.OPENED, fields={"pid": os.getpid(), "mode": "exclusive"})
            self._write_own([*self._reloaded(), opened])
        except BaseException:
            for feeder in self._feeders:
                feeder.close(0)
            self._chain.close()
            self._lock.close()
            raise
        self._thread = threading.Thread(target=self._run, name="agentd-audit", daemon=True)
        self._thread.start()

    def append(
        self, event: Event | Entry, secrets: Iterable[str] = (), *, synced: bool = True
    ) -> Position:
        """On disk when it returns. Without ``synced`` it is in the file, where our own death leaves
        it, and on disk with the next that is, ``LAZY_SECONDS`` later at the latest.

        ``secrets`` are values that are hidden wherever they appear in ``fields``; an Entry is taken
        as it is. Raises AuditBusy, AuditError: then it is not in the log, and is counted as lost.
        """
        # Signals' handlers raise in the main thread alone, anywhere: it must not lead, nor wait
        # with a Future, whose lock would stay locked.
        may_lead = threading.get_ident() != threading.main_thread().ident
        job = _Job(self._body(event, secrets), may_lead=may_lead, synced=synced)
        self._enqueue(job)
        if not may_lead:
            self._alarm.ring()
        if not job.leads:
            job.ready.acquire()
        if job.leads:
            self._lead()
        if job.position is None:
            raise _refused(job.error)
        return job.position

    def submit(
        self, event: Event | Entry, secrets: Iterable[str] = (), *, lazily: bool = False
    ) -> "Future[Position]":
        """As ``append``, without waiting; ``lazily``: begun ``LAZY_SECONDS`` later at the latest,
        and before what comes after it, with that it may not be synced. Raises AuditBusy."""
        future: Future[Position] = Future()
        job = _Job(self._body(event, secrets), future, synced=not lazily)
        if lazily:
            job.due = time.monotonic() + LAZY_SECONDS
        self._enqueue(job)
        if not lazily:
            self._alarm.ring()
        else:
            self._alarm.ring_when_due()
        return future

    def look(self) -> str:
        """Whether all that was written is still there: what is wrong, or ""."""
        with self._guard:
            if self._led or self._closed:  # whoever writes looks, too
                return self.damage
            self._led = True
        try:
            if self._stale or not self._chain.is_there():
                with contextlib.suppress(OSError, AuditError):
                    self._write((), synced=True)
        finally:
            self._pass_on()
        return self.damage

    @property
    def swept(self) -> int:
        """Executions that began before this record have ended."""
        return self._chain.swept

    def sweep(self, seq: int) -> None:
        self._chain.sweep(seq)

    @property
    def head(self) -> Position | None:
        """Of the last record: kept elsewhere, it shows later whether the end was cut off."""
        return self._chain.head

    @property
    def counts(self) -> Counts:
        return msgspec.structs.replace(
            self._counts,
            lost=self._losses.total,
            retire_failures=self._chain.retire_failures,
            unsent=sum(feeder.dropped for feeder in self._feeders),
        )

    def close(self) -> None:
        """Write what is queued, give the sinks some seconds for the rest, and let go."""
        with self._guard:
            if self._closed:
                return
        if self._feeders:  # what waits is for them, too
            self._settle(CLOSE_SECONDS)
        for feeder in self._feeders:  # first: what they have lost is recorded, too
            feeder.close(CLOSE_SECONDS)
        with self._guard:
            self._closed = True
        self._alarm.ring()
        self._thread.join()

    def _settle(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (self._queue or self._led) and time.monotonic() < deadline:
            time.sleep(0.001)

    def _body(self, event: Event | Entry, secrets: Iterable[str]) -> bytes:
        made = event if isinstance(event, Entry) else entry(event, self._clock(), secrets)
        return made.body

    def _enqueue(self, job: _Job) -> None:
        # Nobody waits for what is lazy: that it cannot be written must be known before it is done.
        if self.damage or not self._chain.may_be_there():
            self._require_whole()
        with self._guard:
            if self._closed:
                raise AuditError("the audit log is closed")
            waiting, size = len(self._queue), self._queued_bytes
            if waiting < MAX_WAITING and size < MAX_WAITING_BYTES:
                self._queue.append(job)
                self._queued_bytes += len(job.body)
                if not self._led and job.may_lead:
                    self._led = True
                    self._appoint(job)
                return
        self._losses.add(1, "too many events waited")
        raise AuditBusy(
            f"{waiting} events, {size} bytes, wait for the audit log",
            cause="its disk is too slow, or stands still",
            remediation="try again later",
        )

    def _require_whole(self) -> None:
        damage = self.look()
        if not damage and not self._chain.may_be_there():  # somebody writes, and will find it
            damage = f"the audit log {self.directory} is gone"
        if damage:
            self._losses.add(1, damage)
            raise LogDamaged(damage)

    def _lead(self, *, synced: bool = False) -> None:
        """Write one batch, which one's own event is the first of."""
        try:
            self._commit(synced)
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        with self._guard:
            if self._queue:
                self._appoint(self._queue[0])
            else:
                self._led = False
                if self._closed:
                    self._alarm.ring()
                elif self._sync_due:
                    self._alarm.ring_when_due()

    def _appoint(self, job: _Job) -> None:
        """Whoever waits for the first of the queue leads; under ``_guard``."""
        if job.may_lead:
            job.leads = True
            job.ready.release()
        else:
            self._thread_leads = True
            self._alarm.ring()

    def _run(self) -> None:
        try:
            while self._led or self._queue or not self._closed:
                self._alarm.wait(self._oldest_due)
                if self._is_threads_turn():
                    self._lead(synced=True)
            with contextlib.suppress(OSError, AuditError):
                self._write((), synced=True)  # what was lost
        finally:
            self._chain.close()
            self._lock.close()

    def _oldest_due(self) -> float:
        with self._guard:
            dues = [self._queue[0].due] if self._queue else []
        if self._sync_due:
            dues.append(self._sync_due)
        return min(dues, default=0.0)

    def _is_threads_turn(self) -> bool:
        with self._guard:
            appointed, self._thread_leads = self._thread_leads, False
            late = 0 < self._sync_due <= time.monotonic()
            if not appointed and not self._led and (self._queue or late):
                self._led = appointed = True
        return appointed

    def _commit(self, synced: bool) -> None:
        """One batch of what is queued, by the one that leads."""
        batch: list[_Job] = []
        try:
            self._take_queued(batch)
            synced = synced or any(job.synced for job in batch)
            written = self._write([job.body for job in batch], synced=synced)
            for job, position in zip(batch, written, strict=True):
                job.position = position
        except (OSError, AuditError) as error:
            self._fail(batch, error)
        except Exception as error:  # no memory, say: nobody may wait for ever
            self._stale = True
            self._fail(batch, OSError(repr(error)))
        finally:
            for job in batch:
                if job.future is not None:
                    _settle(job)
                elif not job.leads:
                    job.ready.release()

    def _take_queued(self, batch: list[_Job]) -> None:
        """Into ``batch``, which the caller has even where this is interrupted."""
        size = 0
        with self._guard:
            while self._queue and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
                job = self._queue.popleft()
                size += len(job.body)
                batch.append(job)
            self._queued_bytes -= size

    def _write(self, bodies: Sequence[bytes], *, synced: bool) -> list[Position]:
        """Those, behind a record of what was lost before. Raises OSError, AuditError."""
        self._stale = self._stale or not self._chain.is_there()
        if not bodies and not self._losses and not self._stale:
            self._sync()
            return []
        lost = None
        try:
            events = self._reloaded() if self._stale else []
            lost = self._losses.taken()
            events += [lost.event()] if lost else []
            own = [entry(event, self._clock()).body for event in events]
            if not own and not bodies:
                return []
            written = self._chain.write([*own, *bodies], synced=synced)
        except BaseException:
            self._losses.put_back(lost)
            self._put_off_sync()
            raise
        if synced:
            self._sync_due = 0.0
        else:
            self._sync_due = self._sync_due or time.monotonic() + LAZY_SECONDS
        self._count(len(written.lines), synced)
        for feeder in self._feeders:
            feeder.offer(written.lines)
        return written.positions[len(own) :]

    def _sync(self) -> None:
        if not self._sync_due:
            return
        try:
            self._chain.sync()
        except BaseException:
            self._put_off_sync()
            raise
        self._sync_due = 0.0
        self._count(0, synced=True)

    def _put_off_sync(self) -> None:
        """After a failure: a broken disk is not to be kept busy."""
        if self._sync_due:
            self._sync_due = time.monotonic() + _RETRY_SECONDS

    def _reloaded(self) -> list[Event]:
        try:
            owed = self._chain.load()
        except AuditError as error:  # one that cannot be read is no better than one that is gone
            self.damage = str(error)
            raise
        self._stale, self.damage = False, ""
        return owed

    def _fail(self, batch: Sequence[_Job], error: OSError | AuditError) -> None:
        if batch:
            self._losses.add(len(batch), _reason(error))
        counts = self._counts
        self._counts = msgspec.structs.replace(counts, failures=counts.failures + 1)
        for job in batch:
            job.error = error

    def _write_own(self, events: Sequence[Event]) -> None:
        try:
            self._write([entry(event, self._clock()).body for event in events], synced=True)
        except OSError as error:
            raise _refused(error) from error

    def _count(self, records: int, synced: bool) -> None:
        counts = self._counts
        self._counts = msgspec.structs.replace(
            counts, commits=counts.commits + synced, records=counts.records + records
        )

    def _note(self, event: Event) -> None:
        """Of a feeder; nobody waits for it."""
        with contextlib.suppress(AuditError):
            self.submit(event)


def _open(directory: str, keep: Keep | None, clock: Callable[[], float]) -> tuple[Lock, Chain]:
    make_directory(directory)
    lock = Lock(directory)
    try:
        lock.acquire()
    except BaseException:
        lock.close()
        raise
    return lock, Chain(directory, keep, clock)


def make_directory(directory: str) -> None:
    """Raises AuditError."""
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
    except OSError as error:
        raise AuditError(
            f"cannot make the directory of the audit log {directory}", cause=error.strerror or ""
        ) from error


def _refused(error: OSError | AuditError | None) -> AuditError:
    if isinstance(error, LogDamaged):
        return LogDamaged(error.message, cause=error.cause, remediation=error.remediation)
    reason = AuditError(
        "the audit log cannot be written",
        cause=_reason(error) if error else "",
        remediation="free space on its disk, or see dmesg",
    )
    reason.__cause__ = error
    return reason


def _reason(error: OSError | AuditError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _settle(job: _Job) -> None:
    future = job.future
    if future is None or not future.set_running_or_notify_cancel():
        return
    if job.position is not None:
        future.set_result(job.position)
    else:
        future.set_exception(_refused(job.error))
