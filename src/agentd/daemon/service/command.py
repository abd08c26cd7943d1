"""One command of a sandbox: what drives it, where its output is kept, how it ended.

One thread drives it. What other threads want of it (input, a signal) is done by that thread too,
between two rounds of output: its stream to the agent has one owner.
"""

import contextlib
import os
import queue
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import Future

import msgspec

from agentd.daemon.execution import INTERRUPTED, Execution, Interrupted, cause_of
from agentd.daemon.service.live import Live
from agentd.model.api import ProcessView, ResultView
from agentd.model.control import check_signal, check_window
from agentd.model.errors import AgentdError, BackendLost, Conflict, SandboxError
from agentd.model.result import Result, SandboxInfo, Timing, Usage
from agentd.sandbox import guard
from agentd.sandbox.journal.events import LIMIT
from agentd.sandbox.journal.journal import Journal
from agentd.transport.core import Missing

# Bytes of each stream that an answer holds; all of it is in the journal.
MAX_ANSWER = 16 << 20
_SIGKILL = 9
RUNNING, ENDED = "running", "ended"
_Errand = tuple[Callable[[], None], "Future[None]"]


class Command:
    """Thread-safe but for ``drive``."""

    def __init__(
        self,
        id_: str,
        live: Live,
        argv: tuple[str, ...],
        tag: str | None,
        execution: Execution,
        journal: Journal,
        *,
        pty: bool,
        adopted: bool = False,
    ) -> None:
        self.id = id_
        self.live = live
        self.argv = argv
        self.tag = tag
        self.journal = journal
        self.started = time.time()
        self.result: ResultView | None = None
        self.stdout = bytearray()  # the begin of each, for who waits
        self.stderr = bytearray()
        self.unrecorded: AgentdError | None = None
        self.ended = threading.Event()
        self.usage = Usage()
        self._execution = execution
        self._wanted: queue.SimpleQueue[_Errand] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()  # of ``_wake``
        self._pty = pty
        self._adopted = adopted  # from a daemon before
        self._keep = False

    def drive(self, *, keep: bool) -> ResultView:
        """Take its output until its end. ``keep``: so that the answer can have it, too."""
        self._keep = keep
        try:
            self._follow()
            result = self._finished()
            self.usage = result.usage
            view = self._view(result)
        except AgentdError as error:
            lost = error
            if self._adopted and self._execution.pid is None:
                lost = Interrupted(INTERRUPTED.message)  # as its record tells it
            self._let_go(lost)
            view = self._lost(lost)
        except Exception as error:  # whoever waits for its end shall not wait for ever
            guard.tell(error)
            lost = _ours(error)
            self._let_go(lost)
            view = self._lost(lost)
        finally:
            with contextlib.suppress(AgentdError):
                self._execution.close()
        self._conclude(view)
        return msgspec.structs.replace(view, truncated=view.truncated or self._shortened())

    def abandon(self, error: Exception) -> None:
        """In place of ``drive``, where nobody can drive it: it is killed."""
        if self.ended.is_set():
            return
        lost = _ours(error)
        try:
            self._let_go(lost)
            with contextlib.suppress(AgentdError):
                self._execution.close()
        finally:
            self._conclude(self._lost(lost))

    def _conclude(self, view: ResultView) -> None:
        self.result = view
        try:
            self.journal.finish(msgspec.json.encode(bare(view)))
        finally:
            self._settle()
            self.ended.set()

    def _finished(self) -> Result:
        try:
            return self._execution.finish()
        except AgentdError as error:
            known = self._execution.result
            if known is None:
                raise
            # How it ended is known, and not written down: whoever waits is told that instead.
            self.unrecorded = error
            return known

    def _let_go(self, error: AgentdError) -> None:
        """Nobody follows it any more: what is told to have ended does not go on, and the record of
        its end says why."""
        with contextlib.suppress(AgentdError):
            if self._execution.pid is not None and not isinstance(error, BackendLost):
                self.live.handle.guest.signal(self._execution.pid, _SIGKILL)
        with contextlib.suppress(AgentdError):
            self._execution.abort(error)

    def _follow(self) -> None:
        while True:
            chunks, ready = self._execution.step(None, (self._wake,))
            for stream, data in chunks:
                self._take(stream, data)
            if ready:
                self._run_errands()
            if self._execution.exit is not None and not chunks:
                return

    def _run_errands(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
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

    def _settle(self) -> None:
        """Nothing is done for it any more."""
        with self._lock:
            os.close(self._wake)
            self._wake = -1
        while not self._wanted.empty():
            self._wanted.get_nowait()[1].set_exception(self._over())

    def _do(self, work: Callable[[], None]) -> None:
        """In the driving thread. Raises what it raises, Conflict once the command has ended."""
        done: Future[None] = Future()
        with self._lock:
            if self._wake < 0:
                raise self._over()
            self._wanted.put((work, done))
            os.eventfd_write(self._wake, 1)
        done.result()

    def _over(self) -> Conflict:
        return Conflict(f"process {self.id} has ended")

    @property
    def request_id(self) -> str:
        return self._execution.request_id

    @property
    def pid(self) -> int | None:
        return self._execution.pid

    def give(self, data: bytes, *, eof: bool) -> None:
        """Input from its driver, before it drives."""
        if data:
            self._execution.write(data)
        if eof:
            self._execution.close_stdin()

    def write(self, data: bytes, *, eof: bool) -> None:
        """Raises Conflict once it has ended."""
        self._do(lambda: self.give(data, eof=eof))

    def signal(self, number: int, target: str) -> None:
        """Raises InvalidInput, Conflict once it has ended; 0 asks for no more than that."""
        check_signal(number, target)
        self._do(lambda: self._execution.running.signal(number, target))

    def resize(self, rows: int, cols: int) -> None:
        """Raises InvalidInput, Conflict once it has ended."""
        check_window(rows, cols)
        self._do(lambda: self._execution.running.resize(rows, cols))

    def let_go(self) -> None:
        """Who waited for it has gone: it is ended. Never blocks."""
        with self._lock:
            if self._wake >= 0:
                self._wanted.put((self._execution.cancel, Future()))
                os.eventfd_write(self._wake, 1)

    def kill(self) -> None:
        with contextlib.suppress(AgentdError):
            self._do(self._execution.kill)

    def view(self) -> ProcessView:
        offsets = {name: count for name, count in self.journal.offsets.items() if count}
        return ProcessView(
            id=self.id,
            sandbox=self.live.id,
            argv=self.argv,
            tag=self.tag,
            pid=self._execution.pid,
            state=ENDED if self.result is not None else RUNNING,
            started=self.started,
            output=offsets,
            lost=lost_bytes(self.journal),
            result=None if self.result is None else bare(self.result),
        )

    def _take(self, stream: str, data: bytes) -> None:
        kept_as = "pty" if self._pty else stream
        if isinstance(data, Missing):
            self.journal.skip(kept_as, data.length, LIMIT)
            return
        self.journal.append(kept_as, data)
        if self._keep:
            kept = self.stdout if stream == "stdout" else self.stderr
            kept += data[: MAX_ANSWER - len(kept)]

    def _view(self, result: Result) -> ResultView:
        stdout, stderr, encoding = texts(bytes(self.stdout), bytes(self.stderr))
        return ResultView(
            request_id=result.request_id,
            status=result.status,
            exit_code=result.exit_code,
            signal=result.signal,
            cause=result.cause,
            stdout=stdout,
            stderr=stderr,
            encoding=encoding,
            truncated=result.truncated,
            usage=result.usage,
            timing=result.timing,
            sandbox=result.sandbox,
            enforcement=result.enforcement,
            process=self.id,
            receipt=result.receipt,
        )

    def _shortened(self) -> bool:
        """Whether the answer has less than the journal."""
        offsets = self.journal.offsets
        return self._keep and any(
            offsets[name] > MAX_ANSWER for name in ("stdout", "stderr", "pty")
        )

    def _lost(self, error: AgentdError) -> ResultView:
        stdout, stderr, encoding = texts(bytes(self.stdout), bytes(self.stderr))
        handle = self.live.handle
        return ResultView(
            request_id=self._execution.request_id,
            status="error",
            exit_code=None,
            signal=None,
            cause=cause_of(error),
            stdout=stdout,
            stderr=stderr,
            encoding=encoding,
            truncated=True,
            usage=Usage(),
            timing=Timing(),
            sandbox=SandboxInfo(handle.id, handle.backend, handle.level.label),
            enforcement=dict(handle.enforcement),
            process=self.id,
        )


def _ours(error: Exception) -> AgentdError:
    if isinstance(error, AgentdError):
        return error
    return SandboxError(f"agentd failed at it: {type(error).__name__}: {error}")


def texts(stdout: bytes, stderr: bytes) -> tuple[str, str, str]:
    """Both as text, or both as base64, and which."""
    try:
        return stdout.decode(), stderr.decode(), "utf-8"
    except UnicodeDecodeError:
        return b64encode(stdout).decode(), b64encode(stderr).decode(), "base64"


def lost_bytes(journal: Journal) -> dict[str, int]:
    """Of each stream, what the disk refused."""
    lost: dict[str, int] = {}
    for gap in journal.losses:
        lost[gap.stream] = lost.get(gap.stream, 0) + gap.length
    return lost


def bare(view: ResultView) -> ResultView:
    return msgspec.structs.replace(view, stdout="", stderr="", encoding="utf-8")
