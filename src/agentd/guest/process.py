"""One command of an agent: fed, pumped, held to its limits, and told of when it ends."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from agentd.guest.loop import READ, Loop, Timer
from agentd.guest.spawn import REPORT_BYTES, reported
from agentd.guest.spawn_request import SpawnError, SpawnRequest
from agentd.guest.stdio import set_window_size
from agentd.guest.tracing import tracers

if TYPE_CHECKING:
    from agentd.guest.output import Pump
    from agentd.guest.stdin import Stdin

# What a command has left behind may still write for so long after its exit, where it holds a pipe;
# and a PTY's output reaches its master a moment late.
LATE_S = 0.1
# What was killed and is not gone then has a tracer that keeps its end: that is killed, too.
HELD_S = 0.5
# Who writes in the last half of that, and holds on, would have gone on: told as truncated.
LAST_S = 0.05

OnStarted = Callable[[SpawnError | None], None]


class ExitInfo(NamedTuple):
    """How a command ended. One of ``code`` and ``signal`` is None."""

    code: int | None
    signal: int | None
    cause: str
    wall_ms: float
    cpu_ms: float
    peak_memory_bytes: int
    truncated: bool

    def fields(self) -> dict[str, object]:
        """Returns it as the ``exited`` event states it."""
        usage = {
            "wall_ms": self.wall_ms,
            "cpu_ms": self.cpu_ms,
            "peak_memory_bytes": self.peak_memory_bytes,
        }
        return {
            "code": self.code,
            "signal": self.signal,
            "cause": self.cause,
            "usage": usage,
            "truncated": self.truncated,
        }


def _explain_nothing(_: SpawnError) -> None:
    """What was not forked needs no more words."""


class GuestProcess:
    """A command of the agent's. Its methods do nothing once it has ended."""

    def __init__(
        self,
        loop: Loop,
        request: SpawnRequest,
        pid: int,
        started: float,
        on_exit: Callable[[ExitInfo], None],
        disk_full: Callable[[], bool],
        limit_hit: Callable[[], str | None],
    ) -> None:
        self.pid = pid
        self.tag = request.tag
        self.argv = request.argv
        self.running = True
        self.pumps: dict[int, Pump] = {}
        self.stdin: Stdin | None = None
        self.terminal: int | None = None
        self._loop = loop
        self._limits = request.limits
        self._on_exit: Callable[[ExitInfo], None] | None = on_exit
        self._disk_full = disk_full
        self._limit_hit = limit_hit
        self._started = started
        self._timers: list[Timer] = []
        self._held: Timer | None = None
        self._kill_cause: str | None = None
        self._truncated = False
        self._report = -1  # readable once it is known whether it has its program
        self._explain: Callable[[SpawnError], None] = _explain_nothing
        self._after_start: OnStarted | None = None
        self._status = 0
        self._usage: tuple[float, float, int] = (0.0, 0.0, 0)
        self._limit: Timer | None = None
        wall_ms = request.limits.get("wall_ms")
        self._left = None if wall_ms is None else wall_ms / 1000  # seconds of its time
        self.stand_still(False)

    def stand_still(self, still: bool) -> None:
        """Have its time limit stand still, or go on with what is left."""
        if still and self._limit is not None:
            self._left = max(0.0, self._limit.when - time.monotonic())
            self._limit.cancel()
            self._limit = None
        elif not still and self._limit is None and self._left is not None and self.running:
            self._limit = self._loop.after(self._left, lambda: self.kill("timeout"))

    def watch_start(self, report: int, explain: Callable[[SpawnError], None]) -> None:
        """Watches it start, once forked. Owns ``report``; ``explain`` adds to an error."""
        self._explain = explain
        os.set_blocking(report, False)
        self._report = report
        self._loop.watch(report, READ, self._on_report)

    def after_start(self, call: OnStarted) -> None:
        """Makes ``call(None)`` once it has its program, which may be now; with the error where it
        has not got it, and is gone."""
        if self._report < 0:
            call(None)
        else:
            self._after_start = call

    def _on_report(self, _: int) -> None:
        try:
            error = reported(os.read(self._report, REPORT_BYTES))
        except BlockingIOError:
            return
        self._close_report()
        explain, self._explain = self._explain, _explain_nothing  # it holds the whole request
        if error is not None:
            explain(error)
            self._on_exit = None
            self._release()
        call, self._after_start = self._after_start, None
        if call is not None:
            call(error)
        self.resume_output()

    def once_started(self, window: Callable[[], int]) -> Callable[[], int]:
        """Returns ``window``, closed until the start is told: a terminal echoes before that."""
        if self._report < 0:
            return window
        return lambda: window() if self._report < 0 else 0

    def _close_report(self) -> None:
        if self._report >= 0:
            self._loop.forget(self._report)
            os.close(self._report)
            self._report = -1

    def feed(self, data: bytes, taken: Callable[[int], None] | None = None) -> None:
        """Write to its stdin in time; ``taken(bytes)`` is called as they go, or are dropped."""
        if self.stdin is not None:
            self.stdin.feed(data, taken)
        elif taken is not None:
            taken(len(data))

    def feed_eof(self) -> None:
        if self.stdin is not None:
            self.stdin.feed_eof()

    def signal(self, number: int) -> None:
        """Sends a signal to its process group. Raises OSError."""
        if not self.running:
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            if self._report < 0:
                raise
            os.kill(self.pid, number)  # it does not lead its group yet: it is alone

    def kill(self, cause: str) -> None:
        """Sends SIGKILL to its process group; ``cause`` is reported if that is what ends it.

        One that has exited, and whose output is still waited for, ends now.
        """
        if not self.running:
            self._drain()
            return
        self._kill_cause = self._kill_cause or cause
        try:
            if self._report >= 0:  # it may not lead its group yet
                os.kill(self.pid, signal.SIGKILL)
            os.killpg(self.pid, signal.SIGKILL)
        except OSError:
            # A user it turned into may be out of our reach (no CAP_KILL): nothing more to do.
            return
        if self._held is None:
            self._held = self._loop.after(HELD_S, self._kill_tracers)

    def _kill_tracers(self) -> None:
        for pid in tracers(self.pid):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._held = self._loop.after(HELD_S, self._kill_tracers)

    def resize(self, rows: int, columns: int) -> None:
        """Resizes its terminal; the kernel sends SIGWINCH. Raises OSError."""
        if self.terminal is not None:
            set_window_size(self.terminal, rows, columns)

    def resume_output(self) -> None:
        """Delivers more output: the window has opened."""
        for pump in self.pumps.values():
            pump.resume()

    def abandon(self) -> None:
        """Kills it and frees what it held: nobody wants its output or its end any more."""
        self._on_exit = None
        self._after_start = None
        self.kill("cancelled")
        self._release()

    def overflow(self) -> None:
        """Ends it: a stream went over its limit."""
        self._truncated = True
        self.kill("output_limit")

    def pump_ended(self) -> None:
        if not self.running:
            self._settle()

    def reaped(self, status: int, cpu_ms: float, peak_memory_bytes: int) -> None:
        """Learns how it ended; what it had written is still delivered, as the window allows."""
        self.running = False
        if self._held is not None:
            self._held.cancel()
        if self._report >= 0:
            self._on_report(0)
        self._status = status
        wall_ms = (time.monotonic() - self._started) * 1000
        self._usage = (round(wall_ms, 3), round(cpu_ms, 3), peak_memory_bytes)
        self._cancel_timers()
        if self.stdin is not None:
            self.stdin.close()
        if self._on_exit is None:
            return
        for pump in self.pumps.values():
            pump.read_out()
        if self._settle():
            return
        if self._kill_cause is not None and self.terminal is None:
            self._drain()
        else:
            self._timers.append(self._loop.after(LATE_S - LAST_S, self._mark))

    def _mark(self) -> None:
        for pump in self.pumps.values():
            pump.mark()
        self._timers.append(self._loop.after(LAST_S, self._drain))

    def _drain(self) -> None:
        """End what somebody still holds: what is in it by now is delivered, and no more."""
        if self._on_exit is None:
            return
        for pump in self.pumps.values():
            pump.drain()
        self._settle()

    def _settle(self) -> bool:
        """Tell the end once all output is delivered: whether that is told now, or was."""
        if self._on_exit is None:
            return True
        if not all(pump.closed for pump in self.pumps.values()):
            return False
        on_exit, self._on_exit = self._on_exit, None
        self._release()
        wall_ms, cpu_ms, peak = self._usage
        exited = os.WIFEXITED(self._status)
        on_exit(
            ExitInfo(
                code=os.WEXITSTATUS(self._status) if exited else None,
                signal=None if exited else os.WTERMSIG(self._status),
                cause=self._cause(exited),
                wall_ms=wall_ms,
                cpu_ms=cpu_ms,
                peak_memory_bytes=peak,
                truncated=self._truncated or any(pump.cut for pump in self.pumps.values()),
            )
        )
        return True

    def _cause(self, exited: bool) -> str:
        if self._truncated:
            return "output_limit"
        if exited:
            if not os.WEXITSTATUS(self._status):
                return "exited"
            return self._limit_hit() or ("disk_full" if self._disk_full() else "exited")
        number = os.WTERMSIG(self._status)
        if number == signal.SIGSYS:
            return "seccomp_violation"
        if number == signal.SIGKILL and self._kill_cause is not None:
            return self._kill_cause
        cpu_s = self._limits.get("cpu_s")
        if cpu_s is not None and number == signal.SIGXCPU:
            return "timeout"
        if cpu_s is not None and number == signal.SIGKILL and self._usage[1] >= cpu_s * 1000:
            # SIGXCPU was ignored, and the hard limit came.
            return "timeout"
        return self._limit_hit() or "signalled"

    def _cancel_timers(self) -> None:
        for timer in (*self._timers, self._limit):
            if timer is not None:
                timer.cancel()
        self._timers, self._left = [], None

    def _release(self) -> None:
        self._cancel_timers()
        self._close_report()
        for pump in self.pumps.values():
            pump.close()
        if self.stdin is not None:
            self.stdin.close()
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None
