"""A command as its daemon lists it: its id, where its output is kept, who may reach it, and what
others are told of it, its waiting caller too; and the register of all: by sandbox, those that run,
how many of whose."""

import contextlib
import os
import queue
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING

import msgspec

from agentd.daemon import events
from agentd.daemon.commands.begin import shortened
from agentd.daemon.commands.ends import INTERRUPTED, CommandLost, ours
from agentd.daemon.store.records import ProcessRecord
from agentd.model import context
from agentd.model.api import ProcessView, ResultView
from agentd.model.errors import AgentdError, BackendLost, Conflict, Full, GuestError, NotFound
from agentd.model.events import EventKind
from agentd.model.principal import Principal
from agentd.model.result import Exit
from agentd.sandbox import guard
from agentd.sandbox.journal.events import LIMIT
from agentd.sandbox.journal.journal import Journal
from agentd.transport.events import LostOutput

if TYPE_CHECKING:
    from agentd.daemon.commands.command import Command
    from agentd.daemon.commands.past import Past
    from agentd.daemon.sandboxes.live import Live
    from agentd.model.running import Running


_WINDOW = 64 << 10  # bytes of each stream in memory; one that has more has none there
_COPIES = 3  # as bytes, as text and as JSON
_PIECE = 64 << 10
_BACKLOG = 256 << 10  # bytes of stdin given ahead of the command
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
        self._argv_cut = 0
        self.is_shortened = False
        self.journal = journal
        self.tag = tag
        self.started = time.time() if started is None else started
        self.ended: float | None = None
        self.errands = Errands(self.over)
        self.pty = pty
        self._adopted = adopted

    def take(self, stream: str, data: bytes) -> None:
        """Write it to the journal."""
        if isinstance(data, LostOutput):
            self.journal.skip(self._kept_as(stream), data.length, LIMIT)
        else:
            self.journal.append(self._kept_as(stream), data)

    def sizes(self) -> dict[str, int]:
        """Return how many bytes of "stdout" and of "stderr" it has written, lost ones too."""
        offsets = self.journal.offsets
        return {name: offsets[self._kept_as(name)] for name in ("stdout", "stderr")}

    def begin_of(self, stream: str, most: int) -> bytes:
        """Read it in the journal, up to the first byte that is lost."""
        return self.journal.begin_of(self._kept_as(stream), most)

    def conclude(self, view: ResultView) -> None:
        """Tell who follows it that it has ended; nothing more is done for it."""
        try:
            self.journal.finish(msgspec.json.encode(view))
        finally:
            self.ended = time.time()
            self.errands.close()

    def record(
        self, principal: str, pid: int | None, request: str, view: ResultView | None
    ) -> ProcessRecord:
        end = None if view is None else Exit(view.exit_code, view.signal, view.cause, view.usage)
        return ProcessRecord(
            id=self.id,
            sandbox=self.live.id,
            principal=principal,
            argv=self.argv,
            state=RUNNING if end is None else ENDED,
            created=self.started,
            tag=self.tag,
            pid=pid,
            ended=None if end is None else time.time(),
            exit=end,
            journal=f"{self.live.id}/{self.id}",
            request=request,
        )

    def shorten(self) -> None:
        """Keep as much of its words as is told: once it has ended, and that is written."""
        self.argv, self._argv_cut = shortened(self.argv, self._argv_cut)
        self.is_shortened = True

    def as_told(self, error: Exception, pid: int | None) -> AgentdError:
        """Return what ended it, as its caller is told."""
        if not isinstance(error, AgentdError):
            guard.tell(error)
        elif self._adopted and pid is None:
            return CommandLost(INTERRUPTED.message)  # as its record tells it
        return ours(error)

    def over(self) -> Conflict:
        return Conflict(f"process {self.id} has ended")

    def _kept_as(self, stream: str) -> str:
        return "pty" if self.pty and stream == "stdout" else stream

    def view(self, pid: int | None, result: ResultView | None) -> ProcessView:
        offsets = {name: count for name, count in self.journal.offsets.items() if count}
        argv, argv_cut = shortened(self.argv, self._argv_cut)
        return ProcessView(
            id=self.id,
            sandbox=self.live.id,
            argv=argv,
            argv_cut=argv_cut,
            tag=self.tag,
            pid=pid,
            state=ENDED if result is not None else RUNNING,
            started=self.started,
            output=offsets,
            lost=lost_bytes(self.journal),
            result=result,
        )


class Errands:
    """Queues what other threads want of a command, for the one that drives it: its stream to the
    agent has one owner. Thread-safe but for ``run``, which belongs to the driving thread."""

    def __init__(self, over: Callable[[], Exception]) -> None:
        """``over`` makes what is raised once nothing is done any more."""
        self._over = over
        self._wanted: queue.SimpleQueue[tuple[Callable[[], object], Future[None]]]
        self._wanted = queue.SimpleQueue()
        self._lock = threading.Lock()  # of ``wake``
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def do(self, work: Callable[[], object]) -> None:
        """Have the driver do it, and wait for that. Raises what it raises, and ``over``."""
        done: Future[None] = Future()
        with self._lock:
            if self.wake < 0:
                raise self._over()
            self._put(work, done)
        done.result()

    def leave(self, work: Callable[[], object]) -> None:
        """Have the driver do it, without a wait; after the end it is left out."""
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


class CommandInput:
    """Holds what a command is to read, in the order in which it came, and gives it as it reads:
    whoever drives it never waits for that. Belongs to the driving thread."""

    def __init__(self) -> None:
        self._items: deque[tuple[memoryview, bool, Future[None]]] = deque()

    def add(self, data: bytes, eof: bool, done: "Future[None]") -> None:
        """Add it; ``done`` once it has most of it, or with what it raises, or ``close`` is told."""
        self._items.append((memoryview(data), eof, done))

    def give(self, running: "Running") -> None:
        """Give as much as it takes now. Raises BackendLost and GuestError."""
        while self._items and running.backlog < _BACKLOG:
            data, eof, done = self._items.popleft()
            piece, rest = bytes(data[:_PIECE]), data[_PIECE:]
            try:
                if piece:
                    running.write(piece)
                if eof and not rest:
                    running.close_stdin()
            except (BackendLost, GuestError):
                self._items.appendleft((data, eof, done))  # ``close`` tells whoever waits
                raise
            except AgentdError as error:  # it reads no more, or its sandbox is paused
                done.set_exception(error)
                continue
            if rest:
                self._items.appendleft((rest, eof, done))
            else:
                done.set_result(None)

    def close(self, process: str) -> None:
        """Drop what it has not read: the ``process`` of that id has ended."""
        while self._items:
            over = Conflict(f"process {process} has ended")
            self._items.popleft()[2].set_exception(over)


def lost_bytes(journal: Journal) -> dict[str, int]:
    """Count the bytes of each stream that the disk refused."""
    lost: dict[str, int] = {}
    for gap in journal.losses:
        lost[gap.stream] = lost.get(gap.stream, 0) + gap.length
    return lost


def bare(view: ResultView) -> ResultView:
    return msgspec.structs.replace(view, stdout="", stderr="", encoding="utf-8")


# A thread each. A principal may start one more while it has fewer than are left: alone it has half
# of them, and there are always some for the next.
MAX_RUNNING = 2048
MAX_KEPT = 256  # ended commands of one sandbox, in memory


class Register:
    """Lists commands, those that run and those that have ended. Thread-safe."""

    def __init__(self, publish: events.Publish = events.nobody) -> None:
        self._publish = publish
        self._lock = threading.Lock()
        self._running: dict[str, Command] = {}
        self._of_principal: Counter[str] = Counter()  # that run
        self._of: dict[str, dict[str, Command | Past]] = {}  # by sandbox

    def room(self, who: Principal) -> None:
        """Check for room. Raises Full where ``who`` may start no more."""
        with self._lock:
            mine = self._of_principal[who.name]
            if mine >= MAX_RUNNING - len(self._running):
                raise Full(
                    f"{mine} commands of {who.name} run already",
                    cause=f"{len(self._running)} run, and {MAX_RUNNING} are the most",
                    remediation="come back when some have ended",
                )

    def add(self, who: Principal, command: "Command") -> None:
        with self._lock:
            self._of_principal[who.name] += 1
            self._running[command.id] = command
            known = self._of.setdefault(command.listed.live.id, {})
            known[command.id] = command
            if len(known) > MAX_KEPT:
                ended = [c for c in known.values() if c.result is not None]
                for old in ended[: len(known) - MAX_KEPT]:
                    del known[old.id]
        self._tell(command, "started")

    def release(self, who: Principal, command: "Command", *, forget: bool = False) -> None:
        """Note that it runs no more; ``forget``: nor is it listed."""
        with self._lock:
            ran = self._running.pop(command.id, None) is not None
            if ran:
                self._of_principal[who.name] -= 1
                if not self._of_principal[who.name]:
                    del self._of_principal[who.name]
            if forget:
                self._of.get(command.listed.live.id, {}).pop(command.id, None)
        if ran:
            end = command.result
            about = {} if end is None else {"code": str(end.cause.code), "exit_code": end.exit_code}
            self._tell(command, "ended", **about)

    def _tell(self, command: "Command", state: str, **about: object) -> None:
        live = command.listed.live
        tag = {"tag": command.tag} if command.tag is not None else {}
        self._publish(
            EventKind.PROCESS,
            live.record.principal,
            live.id,
            process=command.id,
            state=state,
            **tag,
            **about,
        )

    def add_past(self, sandbox: str, past: "Mapping[str, Past]") -> None:
        """Add those of the daemon before, which come first."""
        with self._lock:
            self._of[sandbox] = {**past, **self._of.get(sandbox, {})}

    def forget(self, sandbox: str) -> None:
        with self._lock:
            self._of.pop(sandbox, None)

    def all(self, sandbox: str) -> "list[Command | Past]":
        """List those of a sandbox, the oldest first."""
        with self._lock:
            return list(self._of.get(sandbox, {}).values())

    def get(self, sandbox: str, id_: str) -> "Command | Past":
        """Find one by its id or its tag, the newest with that. Raises NotFound."""
        with self._lock:
            known = self._of.get(sandbox, {})
            found = known.get(id_)
            if found is None:
                tagged = [c for c in known.values() if c.tag == id_ and c.tag is not None]
                found = tagged[-1] if tagged else None
        if found is None:
            raise NotFound(
                f"sandbox {sandbox} has no process {id_[:64]!r}",
                remediation="agentd inspect lists its commands; an older one may be forgotten",
            )
        return found

    def running(self) -> "list[Command]":
        with self._lock:
            return list(self._running.values())


class KeptOutput:
    """Keeps what a command wrote, for who waits for its end: what is short in memory, all else is
    in its journal. Of one that is not ``listed`` all is in memory: nobody else has it."""

    def __init__(self, listed: "Listed | None") -> None:
        self._listed = listed
        self._most = sys.maxsize if listed is None else _WINDOW
        self._begun = {"stdout": bytearray(), "stderr": bytearray()}
        self._is_all = True
        if listed is not None:
            listed.journal.files.keeps_begin = True  # whatever follows it

    def take(self, stream: str, data: bytes) -> None:
        kept = self._begun[stream]
        if isinstance(data, LostOutput):
            self._is_all = False
        elif len(kept) + len(data) <= self._most:
            kept += data
        else:
            self._is_all = False
            kept.clear()

    def read(self, most: int = sys.maxsize) -> tuple[bytes, bytes, bool]:
        """Return the begin of stdout and of stderr, at most ``most`` bytes of each, up to the first
        that is lost; and whether that is all. Waits until there is room for them in memory. Raises
        what ``context.make_room`` does."""
        if self._is_all or self._listed is None:
            out, err = map(bytes, self._begun.values())
            return out, err, self._is_all
        sizes = self._listed.sizes()
        context.make_room(_COPIES * sum(min(most, size) for size in sizes.values()))
        out, err = (self._listed.begin_of(name, most) for name in sizes)
        return out, err, len(out) + len(err) == sum(sizes.values())
