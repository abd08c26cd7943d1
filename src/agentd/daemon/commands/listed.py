"""A command as its daemon lists it: its id, where its output is kept, who may reach it, and what
others are told of it."""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import msgspec

from agentd.daemon.commands.ends import INTERRUPTED, CommandLost, ours
from agentd.model.api import ProcessView, ResultView
from agentd.model.errors import AgentdError, Conflict
from agentd.sandbox import guard
from agentd.sandbox.journal.events import LIMIT
from agentd.sandbox.journal.journal import Journal
from agentd.transport.events import LostOutput

if TYPE_CHECKING:
    from agentd.daemon.sandboxes.live import Live

RUNNING, ENDED = "running", "ended"


class Listed:
    """``adopted``: its daemon before began it."""

    def __init__(
        self,
        id_: str,
        live: "Live",
        argv: tuple[str, ...],
        journal: Journal,
        *,
        tag: str | None = None,
        pty: bool = False,
        started: float | None = None,
        adopted: bool = False,
    ) -> None:
        self.id = id_
        self.live = live
        self.argv = argv
        self.journal = journal
        self.tag = tag
        self.started = time.time() if started is None else started
        self.ended: float | None = None
        self.errands = Errands(self.over)
        self._pty = pty
        self._adopted = adopted

    def take(self, stream: str, data: bytes) -> None:
        """Into the journal."""
        kept_as = "pty" if self._pty else stream
        if isinstance(data, LostOutput):
            self.journal.skip(kept_as, data.length, LIMIT)
        else:
            self.journal.append(kept_as, data)

    def wrote_more_than(self, size: int) -> bool:
        """Any stream of it."""
        return max(self.journal.offsets.values(), default=0) > size

    def conclude(self, view: ResultView) -> None:
        """Tell who follows it that it has ended; nothing more is done for it."""
        try:
            self.journal.finish(msgspec.json.encode(bare(view)))
        finally:
            self.ended = time.time()
            self.errands.close()

    def as_told(self, error: Exception, pid: int | None) -> AgentdError:
        """Return what ended it, as its caller is told."""
        if not isinstance(error, AgentdError):
            guard.tell(error)
        elif self._adopted and pid is None:
            return CommandLost(INTERRUPTED.message)  # as its record tells it
        return ours(error)

    def over(self) -> Conflict:
        return Conflict(f"process {self.id} has ended")

    def view(self, pid: int | None, result: ResultView | None) -> ProcessView:
        offsets = {name: count for name, count in self.journal.offsets.items() if count}
        return ProcessView(
            id=self.id,
            sandbox=self.live.id,
            argv=self.argv,
            tag=self.tag,
            pid=pid,
            state=ENDED if result is not None else RUNNING,
            started=self.started,
            output=offsets,
            lost=lost_bytes(self.journal),
            result=None if result is None else bare(result),
        )


class Errands:
    """What other threads want of a command, done by the one that drives it: its stream to the
    agent has one owner. Thread-safe but for ``run``, which belongs to the driving thread."""

    def __init__(self, over: Callable[[], Exception]) -> None:
        """``over`` makes what is raised once nothing is done any more."""
        self._over = over
        self._wanted: queue.SimpleQueue[tuple[Callable[[], object], Future[None]]]
        self._wanted = queue.SimpleQueue()
        self._lock = threading.Lock()  # of ``wake``
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def do(self, work: Callable[[], object]) -> None:
        """Waits until it is done. Raises what it raises, and ``over``."""
        done: Future[None] = Future()
        with self._lock:
            if self.wake < 0:
                raise self._over()
            self._put(work, done)
        done.result()

    def leave(self, work: Callable[[], object]) -> None:
        """Never waits; after the end it is left out."""
        with self._lock:
            if self.wake >= 0:
                self._put(work, Future())

    def run(self) -> None:
        """Do all that is wanted now."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake)
        while True:
            try:
                work, done = self._wanted.get_nowait()
            except queue.Empty:
                return
            try:
                work()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def close(self) -> None:
        """Do nothing any more; idempotent."""
        with self._lock:
            wake, self.wake = self.wake, -1
        if wake >= 0:
            os.close(wake)
        while not self._wanted.empty():
            self._wanted.get_nowait()[1].set_exception(self._over())

    def _put(self, work: Callable[[], object], done: "Future[None]") -> None:
        self._wanted.put((work, done))
        os.eventfd_write(self.wake, 1)


def lost_bytes(journal: Journal) -> dict[str, int]:
    """Count the bytes of each stream that the disk refused."""
    lost: dict[str, int] = {}
    for gap in journal.losses:
        lost[gap.stream] = lost.get(gap.stream, 0) + gap.length
    return lost


def bare(view: ResultView) -> ResultView:
    return msgspec.structs.replace(view, stdout="", stderr="", encoding="utf-8")
