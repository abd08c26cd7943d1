"""One at a time writes; what waits meanwhile shares the next commit, and so its fsync(2).

Whoever waits for a write commits it, with all that is queued before it: two switches of threads
cost as much as the fsync. What nobody waits for is the thread's.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from agentd.daemon.store.errors import StoreBusy, StoreError
from agentd.daemon.store.view import WriteView

MAX_WAITING = 8192
MAX_BATCH = 256

Work = Callable[[WriteView], Any]
Outcome = tuple[Any, BaseException | None]


class Counts(NamedTuple):
    """Since it was opened: ``writes`` share ``commits``; ``failures`` the disk refused."""

    commits: int
    writes: int
    failures: int


class _Job:
    """``future`` is an asyncio one where ``loop`` is given."""

    __slots__ = ("future", "loop", "outcome", "synced", "work")

    def __init__(
        self,
        work: Work,
        future: "Future[Any] | asyncio.Future[Any]",
        loop: asyncio.AbstractEventLoop | None,
        synced: bool,
    ) -> None:
        self.work = work
        self.synced = synced
        self.future = future
        self.loop = loop
        self.outcome: Outcome = (None, None)


class Writer:
    """Owns ``connection``, which must not begin transactions by itself."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._view = WriteView(connection)
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._guard = threading.Lock()  # nothing is queued behind the end
        self._turn = threading.Lock()  # held by whoever takes from the queue and commits
        self._closed = False
        self._ended = False  # the queue's end was taken
        self._wake = threading.Event()
        self._synced = True
        self.counts = Counts(0, 0, 0)  # set by the thread alone
        self._thread = threading.Thread(target=self._run, name="agentd-store", daemon=True)
        self._thread.start()

    def submit(self, work: Work, *, synced: bool = True, urgent: bool = True) -> "Future[Any]":
        future: Future[Any] = Future()
        self._enqueue(_Job(work, future, None, synced))
        if urgent:
            self._wake.set()
        return future

    def write(self, work: Work, *, synced: bool = True) -> Any:
        """As ``submit``, done by the caller unless another is about to take it along."""
        future: Future[Any] = Future()
        self._enqueue(_Job(work, future, None, synced))
        while not future.done():
            with self._turn:
                if not future.done() and (batch := self._take_queued()):
                    self._commit(batch)
                    _settle(batch)
        return future.result()

    async def awrite(self, work: Work, *, synced: bool = True) -> Any:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._enqueue(_Job(work, future, loop, synced))
        self._wake.set()
        return await future

    @property
    def works(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    def close(self) -> None:
        with self._guard:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._wake.set()
        self._thread.join()

    def _enqueue(self, job: _Job) -> None:
        with self._guard:
            if self._closed:
                raise StoreError("the store is closed")
            if self._queue.qsize() >= MAX_WAITING:
                raise StoreBusy(
                    f"{MAX_WAITING} writes wait for the store", remediation="try again later"
                )
            self._queue.put(job)

    def _run(self) -> None:
        try:
            while not self._ended:
                self._wake.wait()
                self._wake.clear()
                with self._turn:
                    while batch := self._take_queued():
                        self._commit(batch)
                        _settle(batch)
        finally:
            self._connection.close()

    def _take_queued(self) -> list[_Job]:
        """What is there, in its order; under ``_turn``."""
        batch: list[_Job] = []
        with contextlib.suppress(Empty):
            while len(batch) < MAX_BATCH:
                job = self._queue.get(block=False)
                if job is None:
                    self._ended = True
                    break
                batch.append(job)
        return batch

    def _commit(self, batch: list[_Job]) -> None:
        try:
            self._sync(any(job.synced for job in batch))
            self._connection.execute("BEGIN IMMEDIATE")
            for job in batch:
                self._do(job)
            self._connection.execute("COMMIT")
            commits, writes, failures = self.counts
            self.counts = Counts(commits + 1, writes + len(batch), failures)
        except sqlite3.Error as error:
            self._roll_back()
            self.counts = self.counts._replace(failures=self.counts.failures + 1)
            reason = failed("the store cannot be written", error)
            for job in batch:
                job.outcome = (None, reason)
        except BaseException as error:  # no memory, say: nobody may wait for ever
            self._roll_back()
            self.counts = self.counts._replace(failures=self.counts.failures + 1)
            for job in batch:
                job.outcome = (None, failed("the store cannot be written", error))

    def _sync(self, wanted: bool) -> None:
        """Whether commits reach the disk. In WAL mode the next that does takes earlier ones along
        (pragma.html#pragma_synchronous)."""
        if wanted != self._synced:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}")
            self._synced = wanted

    def _do(self, job: _Job) -> None:
        """Alone in a savepoint: what it raises undoes it and nothing else."""
        self._connection.execute("SAVEPOINT job")
        try:
            job.outcome = (job.work(self._view), None)
        except BaseException as error:
            # Some errors, a full disk among them, end the transaction (lang_transaction.html).
            if not self._connection.in_transaction:
                raise sqlite3.OperationalError(f"the transaction ended: {error}") from error
            self._connection.execute("ROLLBACK TO job")
            wrapped = failed("the store refused a write", error)
            job.outcome = (None, wrapped if isinstance(error, sqlite3.Error) else error)
        self._connection.execute("RELEASE job")

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def failed(what: str, error: BaseException) -> StoreError:
    reason = StoreError(what, cause=str(error), remediation="free space on its disk, or see dmesg")
    reason.__cause__ = error
    return reason


def _settle(batch: list[_Job]) -> None:
    """One wake-up a loop, however many wait in it."""
    loops: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in batch:
        if job.loop is None:
            _resolve(job)
        else:
            loops.setdefault(job.loop, []).append(job)
    for loop, jobs in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_resolve_all, jobs)


def _resolve_all(jobs: Iterable[_Job]) -> None:
    for job in jobs:
        _resolve(job)


def _resolve(job: _Job) -> None:
    value, error = job.outcome
    if job.future.cancelled():
        return
    with contextlib.suppress(InvalidStateError):  # it was cancelled meanwhile
        if error is None:
            job.future.set_result(value)
        else:
            job.future.set_exception(error)
