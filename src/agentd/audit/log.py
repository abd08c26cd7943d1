"""The log of a daemon: many threads append, and share an fsync(2), as of ``model.commit``."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from agentd.audit.chain import Chain, Keep
from agentd.audit.errors import AuditBusy, AuditError, LogDamaged
from agentd.audit.lock import Lock
from agentd.audit.record import LogEntry, entry
from agentd.audit.sinks.feeder import Feeder
from agentd.model.audit import Event, Kind, Position
from agentd.model.commit import GroupCommit, Job, NotTaken
from agentd.model.system import os_errors_as

if TYPE_CHECKING:
    from agentd.audit.sinks.port import AuditSink

LAZY_SECONDS = 0.005
_RETRY_SECONDS = 1.0
_MAX_REASONS = 16  # kinds of errors there are more of than this are "other"
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
        # Its ``due`` is by when what is in the file alone must be on disk, if anything is.
        self._commits: GroupCommit[bytes, Position]
        self._commits = GroupCommit("agentd-audit", self._commit, self._end)
        self._stale = False  # what is on the disk must be looked at
        self._closed = False
        self.damage = ""  # what is wrong with what was written, until it is fixed
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
        self._commits.start()

    def append(
        self, event: Event | LogEntry, secrets: Iterable[str] = (), *, synced: bool = True
    ) -> Position:
        """Write it: on disk when this returns. Without ``synced`` in the file, where our death
        leaves it, and on disk with the next that is, ``LAZY_SECONDS`` later at the latest.

        ``secrets`` are values that are hidden wherever they appear in ``fields``; a LogEntry is
        taken as it is. Raises AuditBusy, AuditError: then it is not in the log, and counts as lost.
        """
        made = event if isinstance(event, LogEntry) else entry(event, self._clock(), secrets)
        try:
            return self._commits.do(made.body, size=len(made.body), synced=synced)
        except NotTaken as why:
            raise self._not_taken(why) from None

    def submit(
        self, event: Event | LogEntry, secrets: Iterable[str] = (), *, lazily: bool = False
    ) -> Job[bytes, Position]:
        """As ``append``, without waiting; ``lazily``: begun ``LAZY_SECONDS`` later at the latest,
        and before what comes after it, with that it may not be synced. Raises AuditBusy."""
        made = event if isinstance(event, LogEntry) else entry(event, self._clock(), secrets)
        # Nobody waits for it: that it cannot be written must be known before it is done.
        if self.damage or not self._chain.may_be_there():
            self._require_whole()
        size, delay = len(made.body), LAZY_SECONDS if lazily else 0.0
        try:
            return self._commits.submit(made.body, size=size, synced=not lazily, lazily=delay)
        except NotTaken as why:
            raise self._not_taken(why) from None

    def look(self) -> str:
        """Return whether all that was written is still there: what is wrong, or "". Look after the
        sinks, too."""
        for feeder in self._feeders:
            feeder.look()
        with self._commits.alone() as alone:  # whoever writes looks, too
            if alone and (self._stale or not self._chain.is_there()):
                with contextlib.suppress(OSError, AuditError):
                    self._write((), synced=True)
        return self.damage

    @property
    def swept(self) -> int:
        """Executions that began before this record have ended."""
        return self._chain.swept

    def sweep(self, seq: int) -> None:
        self._chain.sweep(seq)

    @property
    def head(self) -> Position | None:
        """Return the last record's place: kept elsewhere, it shows whether the end was cut off."""
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
        if self._closed:
            return
        if self._feeders:  # what waits is for them, too
            self._commits.settle(CLOSE_SECONDS)
        for feeder in self._feeders:  # first: what they have lost is recorded, too
            feeder.close(CLOSE_SECONDS)
        self._closed = True
        self._commits.close()

    def _not_taken(self, why: NotTaken) -> AuditError:
        if not why.waiting:
            return AuditError("the audit log is closed")
        self._losses.add(1, "too many events waited")
        return AuditBusy(
            f"{why.waiting} events, {why.size} bytes, wait for the audit log",
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

    def _end(self) -> None:
        """The last of the thread."""
        try:
            with contextlib.suppress(OSError, AuditError):
                self._write((), synced=True)  # what was lost
        finally:
            self._chain.close()
            self._lock.close()

    def _commit(
        self, batch: Sequence[Job[bytes, Position]], is_thread: bool
    ) -> Sequence[Position | AuditError]:
        try:
            synced = is_thread or True in [job.synced for job in batch]
            return self._write([job.work for job in batch], synced=synced)
        except (OSError, AuditError) as error:
            return self._failed(len(batch), error)
        except Exception as error:  # no memory, say
            self._stale = True
            return self._failed(len(batch), OSError(repr(error)))

    def _write(self, bodies: Sequence[bytes], *, synced: bool) -> list[Position]:
        """Write those, behind a record of what was lost before. Raises OSError, AuditError."""
        self._stale = self._stale or not self._chain.is_there()
        if not bodies and not self._losses and not self._stale:
            self._sync()
            return []
        lost, owed = None, list[Event]()
        try:
            owed = self._reloaded() if self._stale else []
            events = owed[:]
            lost = self._losses.taken()
            events += [lost.event()] if lost else []
            own = [entry(event, self._clock()).body for event in events]
            if not own and not bodies:
                return []
            written = self._chain.write([*own, *bodies], synced=synced)
        except BaseException:
            self._stale = self._stale or bool(owed)  # it is looked for again
            self._losses.put_back(lost)
            self._put_off_sync()
            raise
        if synced:
            self._commits.due = 0.0
        else:
            self._commits.due = self._commits.due or time.monotonic() + LAZY_SECONDS
        self._count(len(written.lines), synced)
        for feeder in self._feeders:
            feeder.offer(written.lines)
        return written.positions[len(own) :]

    def _sync(self) -> None:
        if not self._commits.due:
            return
        try:
            self._chain.sync()
        except BaseException:
            self._put_off_sync()
            raise
        self._commits.due = 0.0
        self._count(0, synced=True)

    def _put_off_sync(self) -> None:
        """After a failure: a broken disk is not to be kept busy."""
        if self._commits.due:
            self._commits.due = time.monotonic() + _RETRY_SECONDS

    def _reloaded(self) -> list[Event]:
        try:
            owed = self._chain.load()
        except AuditError as error:  # one that cannot be read is no better than one that is gone
            self.damage = str(error)
            raise
        self._stale, self.damage = False, ""
        return owed

    def _failed(self, count: int, error: OSError | AuditError) -> list[AuditError]:
        """Count a failure; return what each of so many is told."""
        if count:
            self._losses.add(count, _reason(error))
        counts = self._counts
        self._counts = msgspec.structs.replace(counts, failures=counts.failures + 1)
        return [_refused(error) for _ in range(count)]

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
        """Write a feeder's event, which nobody waits for."""
        with contextlib.suppress(AuditError):
            self.submit(event)


class Lost(msgspec.Struct, frozen=True):
    since: float
    reasons: dict[str, int]

    def event(self) -> Event:
        about = {
            "lost": sum(self.reasons.values()),
            "since": datetime.fromtimestamp(self.since, UTC).isoformat(),
            "reasons": [f"{reason}: {count}" for reason, count in self.reasons.items()],
        }
        return Event(kind=Kind.LOSS, fields=about)


class Losses:
    """Events that could not be written: counted until a record of their own says so.
    Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._since = 0.0
        self._reasons: dict[str, int] = {}
        self.total = 0

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def add(self, count: int, reason: str) -> None:
        with self._guard:
            self.total += count
            self._add(count, reason, self._clock())

    def taken(self) -> Lost | None:
        """Return what no record says yet; the caller writes one, or puts it back."""
        if not self._reasons:
            return None
        with self._guard:
            lost = Lost(self._since, self._reasons)
            self._reasons = {}
        return lost

    def put_back(self, lost: Lost | None) -> None:
        if lost is None:
            return
        with self._guard:
            for reason, count in lost.reasons.items():
                self._add(count, reason, lost.since)
            self._since = lost.since

    def _add(self, count: int, reason: str, when: float) -> None:
        if not self._reasons:
            self._since = when
        if reason not in self._reasons and len(self._reasons) >= _MAX_REASONS:
            reason = "other"
        self._reasons[reason] = self._reasons.get(reason, 0) + count


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
    with os_errors_as(AuditError, f"cannot make the directory of the audit log {directory}"):
        os.makedirs(directory, 0o700, exist_ok=True)


def _refused(error: OSError | AuditError) -> AuditError:
    if isinstance(error, LogDamaged):
        return LogDamaged(error.message, cause=error.cause, remediation=error.remediation)
    reason = AuditError(
        "the audit log cannot be written",
        cause=_reason(error),
        remediation="free space on its disk, or see dmesg",
    )
    reason.__cause__ = error
    return reason


def _reason(error: OSError | AuditError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
