"""The store as an SQLite file in WAL mode (https://www.sqlite.org/wal.html)."""

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from agentd.daemon.store.errors import StoreBusy, StoreError
from agentd.daemon.store.lock import OwnerLock
from agentd.daemon.store.migrations import migrate
from agentd.daemon.store.view import Transaction, Value, View
from agentd.linux.paths import sync
from agentd.model.commit import GroupCommit, Job, NotTaken
from agentd.model.system import os_errors_as

T = TypeVar("T")
Work = Callable[[Transaction], Any]

FILE, LOCK = "store.db", "store.lock"
_MAX_IDLE_READERS = 8
# FULL: the log is synced at each commit, so what was acknowledged outlives a loss of power.
_WRITER = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA journal_size_limit = 16777216",
    "PRAGMA secure_delete = ON",  # what is forgotten is not left in free pages
)
_READER = ("PRAGMA query_only = ON",)
_HELD = "end the other program that writes to it: fuser -v STATE/store.db"
_OF_DISK = "free space on its disk, or see dmesg"
_OWN = "its files, STATE/store.db and those beside it, must be this user's to read and write"
_FIXES = {
    sqlite3.SQLITE_BUSY: _HELD,
    sqlite3.SQLITE_LOCKED: _HELD,
    sqlite3.SQLITE_CANTOPEN: _OWN,
    sqlite3.SQLITE_PERM: _OWN,
    sqlite3.SQLITE_READONLY: _OWN,
}
LAZY_SECONDS = 1.0  # after which what is not urgent is written by itself


class WriteCounts(NamedTuple):
    """Since it was opened: ``writes`` share ``commits``; ``failures`` the disk refused."""

    commits: int
    writes: int
    failures: int


class SqliteStore(View):
    """Reads from any thread, and writes that are on disk when done. Thread-safe.

    ``folder`` is made if need be, mode 0700. Raises StoreLocked, StoreError. Each read may raise
    StoreError.

    A write is a function that gets a Transaction. It runs alone, in whichever thread commits it, so
    it must be short and wait for nothing. What it raises undoes it and reaches the caller. When its
    value is there, it is on disk. Raises StoreBusy, and StoreError when the disk refuses.
    """

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(folder)
        self._path = os.path.join(self.folder, FILE)
        self._guard = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        _prepare(self.folder)
        self._lock = OwnerLock(os.path.join(self.folder, LOCK))
        try:
            _create(self._path)
            self._writer = _Writer(self._open(), self._path)
        except BaseException:
            self._lock.close()
            raise

    @property
    def works(self) -> bool:
        """Whether what is submitted is written."""
        return self._writer.commits.works

    def write(self, work: Callable[[Transaction], T], *, synced: bool = True) -> T:
        """Write, and wait until it is on disk; ``synced`` as for ``submit``."""
        try:
            value: T = self._writer.commits.do(work, synced=synced)
        except NotTaken as why:
            raise _not_taken(why) from None
        return value

    def submit(
        self, work: Callable[[Transaction], T], *, synced: bool = True, urgent: bool = True
    ) -> Job[Work, Any]:
        """Have it written. One that is not ``urgent`` is written along with the next write, whoever
        makes that, and after a second by itself.

        Without ``synced`` a loss of power may undo it, the death of the daemon does not; the
        next synced write of any caller makes it lasting too."""
        lazily = 0.0 if urgent else LAZY_SECONDS
        try:
            return self._writer.commits.submit(work, synced=synced, lazily=lazily)
        except NotTaken as why:
            raise _not_taken(why) from None

    def counts(self) -> WriteCounts:
        return self._writer.counts

    def missing(self) -> str:
        """Tell that its file was taken away, after which nothing is written; "" where it was not.
        What was moved goes on where it is put back."""
        return self._writer.missing()

    def checkpoint(self) -> None:
        """Leave what was deleted in no file, unless the disk refuses."""
        with contextlib.suppress(sqlite3.Error):  # the next one does it
            connection = _connect(self._path, ("PRAGMA wal_checkpoint(TRUNCATE)",))
            connection.close()

    def close(self) -> None:
        """Close it, after the writes that wait. Idempotent."""
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        self._writer.commits.close()
        self._lock.close()

    def _open(self) -> sqlite3.Connection:
        try:
            connection = _connect(self._path, _WRITER)
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error
        try:
            migrate(connection)
        except sqlite3.Error as error:
            connection.close()
            raise _unusable(self._path, error) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _rows(self, sql: str, values: Sequence[Value] = ()) -> list[Any]:
        """Read on a connection of its own: in WAL mode a reader neither waits nor is waited for."""
        connection = self._borrow()
        try:
            return connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise _failed("the store cannot be read", error) from error
        finally:
            self._give_back(connection)

    def _borrow(self) -> sqlite3.Connection:
        with self._guard:
            if self._closed:
                raise StoreError("the store is closed")
            if self._idle:
                return self._idle.pop()
        try:
            return _connect(self._path, _READER)
        except sqlite3.Error as error:
            raise _failed("the store cannot be read", error) from error

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._guard:
            keep = not self._closed and len(self._idle) < _MAX_IDLE_READERS
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()


class _Writer:
    """Commits writes: those of many threads share a transaction, as of ``model.commit``.

    Owns ``connection``, which must not begin transactions by itself.
    """

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._connection = connection
        self._path, self._file = path, os.stat(path)
        self._view = Transaction(connection)
        self._synced = True
        self.counts = WriteCounts(0, 0, 0)  # set by who commits alone
        self.commits: GroupCommit[Work, Any]
        self.commits = GroupCommit("agentd-store", self._commit, connection.close)
        self.commits.start()

    def _commit(self, batch: Sequence[Job[Work, Any]], is_thread: bool) -> list[Any]:
        """Return the value of each, or the error that it was refused with."""
        if not batch:
            return []
        try:
            if missing := self.missing():  # SQLite goes on writing to a file that is nowhere
                raise FileNotFoundError(missing)
            self._sync(True in [job.synced for job in batch])
            self._connection.execute("BEGIN IMMEDIATE")
            done = [self._do(job.work) for job in batch]
            self._connection.execute("COMMIT")
        except BaseException as error:  # no memory, say: nobody may wait for ever
            self._roll_back()
            self.counts = self.counts._replace(failures=self.counts.failures + 1)
            return [_failed("the store cannot be written", error) for _ in batch]
        commits, writes, failures = self.counts
        self.counts = WriteCounts(commits + 1, writes + len(batch), failures)
        return done

    def missing(self) -> str:
        """Tell that the file is not where it was, and what was written is lost with us; else ""."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._path), self._file):
                return ""
        return f"{self._path} is gone: put it back, or start the daemon again without it"

    def _sync(self, wanted: bool) -> None:
        """Set whether commits reach the disk. In WAL mode the next that does takes earlier ones
        along (pragma.html#pragma_synchronous)."""
        if wanted != self._synced:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}")
            self._synced = wanted

    def _do(self, work: Work) -> Any:
        """Return its value, or what it raised, which undoes it alone: it has its own savepoint."""
        came: Any
        self._connection.execute("SAVEPOINT job")
        try:
            came = work(self._view)
        except BaseException as error:
            # Some errors, a full disk among them, end the transaction (lang_transaction.html).
            if not self._connection.in_transaction:
                raise sqlite3.OperationalError(f"the transaction ended: {error}") from error
            self._connection.execute("ROLLBACK TO job")
            is_its = not isinstance(error, sqlite3.Error)
            came = error if is_its else _failed("the store refused a write", error)
        self._connection.execute("RELEASE job")
        return came

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _connect(path: str, settings: tuple[str, ...]) -> sqlite3.Connection:
    """Connect in autocommit mode; one thread at a time uses it, not always the same."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        for setting in settings:
            connection.execute(setting).fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(folder: str) -> None:
    with os_errors_as(
        StoreError,
        f"cannot make {folder}",
        "give --state a directory that you can write to, or set daemon.state",
    ):
        if not os.path.isdir(folder):
            os.makedirs(folder, 0o700, exist_ok=True)
            sync(os.path.dirname(folder))
        status = os.stat(folder)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mine = os.geteuid() in (0, status.st_uid)
        yours = f"make it yours alone: chown {os.geteuid()} {folder}; chmod 700 {folder}"
        raise StoreError(
            f"others may change {folder}" if mine else f"{folder} is of uid {status.st_uid}",
            remediation=yours
            if mine
            else "give --state a directory of your own, or set daemon.state",
        )


def _create(path: str) -> None:
    """The empty file, for its owner alone: SQLite gives its log and index the same mode."""
    with os_errors_as(StoreError, f"cannot open {path}"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.close(fd)
        sync(os.path.dirname(path))  # SQLite does it for its log, not for a file that it found


def _unusable(path: str, error: sqlite3.Error) -> StoreError:
    is_damaged = _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    lost = "move the damaged file away; what it knew of sandboxes is lost then"
    return StoreError(
        f"the store {path} cannot be opened",
        cause=str(error),
        remediation=lost if is_damaged else _FIXES.get(_code(error), _OF_DISK),
    )


def _failed(what: str, error: BaseException) -> StoreError:
    is_gone = isinstance(error, FileNotFoundError)  # says itself what to do
    fix = "" if is_gone else _FIXES.get(_code(error), _OF_DISK)
    reason = StoreError(what, cause=str(error), remediation=fix)
    reason.__cause__ = error
    return reason


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _not_taken(why: NotTaken) -> StoreError:
    if not why.waiting:
        return StoreError("the store is closed")
    return StoreBusy(f"{why.waiting} writes wait for the store", remediation="try again later")
