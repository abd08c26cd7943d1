"""Group commit: many threads hand in work and share one commit, and so one fsync(2).

Whoever comes first leads: it commits its own work, and then the first of those that came meanwhile
leads, with all of theirs. So one alone pays for no switch of threads, which costs as much as the
fsync. Work that nobody waits for is the thread's: it leads at once, or, for lazy work, when that is
due, by when it mostly went along with work that is waited for.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

MAX_WAITING = 8192
MAX_WAITING_BYTES = 64 << 20
MAX_BATCH = 512
MAX_BATCH_BYTES = 1 << 20

W = TypeVar("W")  # work
V = TypeVar("V")  # what it comes to


class NotTaken(Exception):
    """The work was not taken: the queue is full of ``waiting`` others, of ``size`` bytes; or it is
    closed, where ``waiting`` is 0."""

    def __init__(self, waiting: int = 0, size: int = 0) -> None:
        super().__init__(f"{waiting} wait" if waiting else "closed")
        self.waiting = waiting
        self.size = size


class Job(Generic[W, V]):
    """A piece of work; the commit that it is part of says what came of it."""

    __slots__ = (
        *("done", "due", "error", "leads", "may_lead", "ready", "size", "synced", "value", "work"),
    )

    def __init__(self, work: W, size: int, synced: bool, *, may_lead: bool = False) -> None:
        self.work = work
        self.size = size
        self.synced = synced
        self.due = 0.0  # by time.monotonic, before which the thread leaves it to others
        self.may_lead = may_lead  # a thread waits for ``ready`` that can commit a batch
        self.leads = False  # and is to commit the next one
        self.ready = threading.Lock()  # released once: when it is done, or when it leads
        self.ready.acquire()
        self.done = False
        self.value: V | None = None
        self.error: BaseException | None = None

    def settle(self, came: "V | BaseException") -> None:
        """Take what it came to, and wake who waits. A leader does not wait."""
        if isinstance(came, BaseException):
            self.error = came
        else:
            self.value = came
        self.done = True
        if not self.leads:
            self.ready.release()

    def result(self, seconds: float = -1) -> V:
        """What it came to, waited for, so long at most where that is not below 0. Raises what the
        commit said of it, and TimeoutError."""
        if not self.ready.acquire(timeout=seconds):
            raise TimeoutError("the commit is not done")
        self.ready.release()
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # it is done


class GroupCommit(Generic[W, V]):
    """Thread-safe. ``commit`` gets a batch, in the order of its coming, and whether it is the
    thread that leads; it runs alone, in whichever thread leads, and returns what each job came to,
    a value or an error. ``ended`` is the last thing that the thread does.
    """

    def __init__(
        self,
        name: str,
        commit: Callable[[Sequence[Job[W, V]], bool], Sequence[V | BaseException]],
        ended: Callable[[], None],
    ) -> None:
        self._commit = commit
        self._ended = ended
        self._queue: deque[Job[W, V]] = deque()
        self._queued_bytes = 0
        self._guard = threading.Lock()  # of the queue
        self._led = False  # a thread takes from the queue and commits, or is about to
        self._thread_leads = False
        self._closed = False
        self._alarm = _Alarm()
        # By when the thread is to lead, with or without work; 0 for never. For ``commit`` to set.
        self.due = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread. What was handed in before waits for it."""
        self._thread.start()

    @property
    def works(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    def do(self, work: W, *, size: int = 0, synced: bool = True) -> V:
        """Waits until it is committed. Raises NotTaken, and what the commit said of this job."""
        # Signals' handlers raise in the main thread alone, anywhere: it must not lead.
        may_lead = threading.get_ident() != threading.main_thread().ident
        job: Job[W, V] = Job(work, size, synced, may_lead=may_lead)
        self._enqueue(job)
        if not may_lead:
            self._alarm.ring()
        if not job.leads:
            job.ready.acquire()
        if job.leads:
            self._lead(job)
        if job.error is not None:
            raise job.error
        return job.value  # type: ignore[return-value]  # it is done

    def submit(
        self, work: W, *, size: int = 0, synced: bool = True, lazily: float = 0.0
    ) -> Job[W, V]:
        """As ``do``, without waiting; ``lazily``: begun so many seconds later at the latest, and
        before what comes after it. Raises NotTaken."""
        job: Job[W, V] = Job(work, size, synced)
        if lazily:
            job.due = time.monotonic() + lazily
        self._enqueue(job)
        if lazily:
            self._alarm.ring_when_due()
        else:
            self._alarm.ring()
        return job

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Make no commit until the end of the block; False, and no promise, where one is being
        made or all is closed."""
        mine = False
        try:
            with self._guard:
                mine = not (self._led or self._closed)
                self._led = self._led or mine
            yield mine
        finally:
            if mine:
                self._pass_on()

    def settle(self, seconds: float) -> None:
        """Waits until nothing is queued nor being committed, for so long at most."""
        deadline = time.monotonic() + seconds
        while (self._queue or self._led) and time.monotonic() < deadline:
            time.sleep(0.001)

    def close(self) -> None:
        """Commits what is queued, and ends the thread. May be called again."""
        with self._guard:
            self._closed = True
        self._alarm.ring()
        self._thread.join()

    def _enqueue(self, job: Job[W, V]) -> None:
        with self._guard:
            if self._closed:
                raise NotTaken
            waiting, size = len(self._queue), self._queued_bytes
            if waiting >= MAX_WAITING or size >= MAX_WAITING_BYTES:
                raise NotTaken(waiting, size)
            self._queue.append(job)
            self._queued_bytes += job.size
            if not self._led and job.may_lead:
                self._led = job.leads = True

    def _lead(self, own: Job[W, V] | None) -> None:
        """Commit one batch; a leader goes on until its own job is done, before which may be more
        lazy ones than a batch takes. ``own`` is None for the thread."""
        try:
            self._commit_batch(own is None)
            while own is not None and not own.done:
                self._commit_batch(False)
        finally:
            self._pass_on()

    def _commit_batch(self, is_thread: bool) -> None:
        batch: list[Job[W, V]] = []
        came: Sequence[V | BaseException] = ()
        lost: BaseException = RuntimeError("the commit settled nothing")
        try:
            size = 0
            with contextlib.suppress(MemoryError), self._guard:  # what was taken is committed
                while self._queue and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
                    batch.append(self._queue[0])
                    self._queue.popleft()
                    size += batch[-1].size
                    self._queued_bytes -= batch[-1].size
            came = self._commit(batch, is_thread)
        except Exception as error:  # no caller may wait for ever
            lost = error
        finally:
            for at, job in enumerate(batch):
                job.settle(came[at] if at < len(came) else lost)

    def _pass_on(self) -> None:
        with self._guard:
            if self._queue:
                self._appoint(self._queue[0])
            else:
                self._led = False
                if self._closed:
                    self._alarm.ring()
                elif self.due:
                    self._alarm.ring_when_due()

    def _appoint(self, job: Job[W, V]) -> None:
        """Make the thread that waits for this job the leader, or the spare thread; under
        ``_guard``."""
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
                    self._lead(None)
        finally:
            self._ended()

    def _oldest_due(self) -> float:
        with self._guard:
            dues = [self._queue[0].due] if self._queue else []
        if self.due:
            dues.append(self.due)
        return min(dues, default=0.0)

    def _is_threads_turn(self) -> bool:
        with self._guard:
            appointed, self._thread_leads = self._thread_leads, False
            late = 0 < self.due <= time.monotonic()
            if not appointed and not self._led and (self._queue or late):
                self._led = appointed = True
        return appointed


class _Alarm:
    """Wakes the thread: for something to do at once, or something that is due later. One thread
    waits; any may ring."""

    def __init__(self) -> None:
        # Whether at once. An Event's lock could stay locked where a signal's handler raises within
        # ``set``.
        self._rings: SimpleQueue[bool] = SimpleQueue()
        self._dozes = False  # who waits is about to look, by itself

    def ring(self) -> None:
        self._rings.put(True)

    def ring_when_due(self) -> None:
        # Who dozes need not be woken: it looks afterwards.
        if not self._dozes:
            self._rings.put(False)

    def wait(self, due: Callable[[], float]) -> None:
        """Wait until it rings; where that was not at once, until ``due()``, monotonic, too."""
        urgent = self._rings.get()
        self._dozes = True
        while not urgent and (left := due() - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                urgent = self._rings.get(timeout=left)
        self._dozes = False
        with contextlib.suppress(Empty):
            while True:
                self._rings.get_nowait()
