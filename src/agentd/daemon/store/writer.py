"""Writes to an SQLite file: those of many threads share a commit, as of ``model.commit``."""

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from agentd.daemon.store.errors import StoreBusy, StoreError
from agentd.daemon.store.view import Transaction
from agentd.model.commit import GroupCommit, Job, NotTaken

LAZY_SECONDS = 1.0  # after which what is not urgent is written by itself

Work = Callable[[Transaction], Any]


class WriteCounts(NamedTuple):
    """Since it was opened: ``writes`` share ``commits``; ``failures`` the disk refused."""

    commits: int
    writes: int
    failures: int


class StoreWriter:
    """Owns ``connection``, which must not begin transactions by itself."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._view = Transaction(connection)
        self._synced = True
        self.counts = WriteCounts(0, 0, 0)  # set by who commits alone
        self._commits: GroupCommit[Work, Any]
        self._commits = GroupCommit("agentd-store", self._commit, connection.close)
        self._commits.start()

    def write(self, work: Work, *, synced: bool = True) -> Any:
        try:
            return self._commits.do(work, synced=synced)
        except NotTaken as why:
            raise _not_taken(why) from None

    def submit(self, work: Work, *, synced: bool = True, urgent: bool = True) -> "Future[Any]":
        lazily = 0.0 if urgent else LAZY_SECONDS
        try:
            return self._commits.submit(work, synced=synced, lazily=lazily)
        except NotTaken as why:
            raise _not_taken(why) from None

    @property
    def works(self) -> bool:
        """Whether its thread lives."""
        return self._commits.works

    def close(self) -> None:
        self._commits.close()

    def _commit(self, batch: Sequence[Job[Work, Any]], is_thread: bool) -> list[Any]:
        """Return the value of each, or the error that it was refused with."""
        if not batch:
            return []
        try:
            self._sync(True in [job.synced for job in batch])
            self._connection.execute("BEGIN IMMEDIATE")
            done = [self._do(job.work) for job in batch]
            self._connection.execute("COMMIT")
        except BaseException as error:  # no memory, say: nobody may wait for ever
            self._roll_back()
            self.counts = self.counts._replace(failures=self.counts.failures + 1)
            return [failed("the store cannot be written", error) for _ in batch]
        commits, writes, failures = self.counts
        self.counts = WriteCounts(commits + 1, writes + len(batch), failures)
        return done

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
            came = error if is_its else failed("the store refused a write", error)
        self._connection.execute("RELEASE job")
        return came

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def failed(what: str, error: BaseException) -> StoreError:
    reason = StoreError(what, cause=str(error), remediation="free space on its disk, or see dmesg")
    reason.__cause__ = error
    return reason


def _not_taken(why: NotTaken) -> StoreError:
    if not why.waiting:
        return StoreError("the store is closed")
    return StoreBusy(f"{why.waiting} writes wait for the store", remediation="try again later")
