"""All commands of an agent: started, waited for, and ended."""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from agentd.guest.loop import Loop
from agentd.guest.oom import OomScore, SpawnContext
from agentd.guest.output import NO_LIMIT, Pump
from agentd.guest.process import ExitInfo, GuestProcess
from agentd.guest.spawn import Spawner
from agentd.guest.spawn_request import SpawnError, SpawnRequest
from agentd.guest.stdin import Stdin
from agentd.guest.stdio import Stdio
from agentd.guest.tracing import let_go

MAX_RUNNING = 1024
# Each round ends one child at least; a fork bomb that outruns them is for the sandbox's wall.
MAX_END_ROUNDS = 4096
_END_PAUSE_S = 0.001

OnOutput = Callable[[int, bytes], None]


class Processes:
    """All commands of an agent, and the one place that waits for children.

    ``disk_paths`` are looked at when a command fails, to tell a full disk.
    """

    def __init__(self, loop: Loop, *, disk_paths: Iterable[str] = ("/tmp",)) -> None:
        self._loop = loop
        self._disk_paths = tuple(disk_paths)
        self._running: dict[int, GuestProcess] = {}
        self._spawner = Spawner()
        self._null = -1
        self._oom_score: SpawnContext = OomScore()
        # Hits of the sandbox's limits so far, by cause, where the agent can see them. What it gives
        # does not change.
        self.limit_hits: Callable[[], Mapping[str, int]] = dict
        loop.on_signal(signal.SIGCHLD, self.reap)

    def set_environment(self, env: Mapping[str, str]) -> None:
        """Sets what commands start with from now on, in place of this process's environment."""
        self._spawner.base_env = {os.fsencode(k): os.fsencode(v) for k, v in env.items()}

    def spawn_in(self, wrap: Callable[[SpawnContext], SpawnContext], group: int = -1) -> None:
        """Start commands within another context, around the one of now, and in that cgroup."""
        self._oom_score = wrap(self._oom_score)
        self._spawner.group = group

    def trust(self) -> None:
        """Trusts that nobody below us can hold up a child: a rehearsal's."""
        self._spawner.crowded = lambda: False

    def stand_still(self, still: bool) -> None:
        """Have the time limits of all that run stand still, or go on."""
        for process in self._running.values():
            process.stand_still(still)

    def __iter__(self) -> Iterator[GuestProcess]:
        """The running ones."""
        return iter(list(self._running.values()))

    def get(self, pid: int) -> GuestProcess | None:
        return self._running.get(pid)

    def start(
        self,
        request: SpawnRequest,
        *,
        on_output: OnOutput,
        on_exit: Callable[[ExitInfo], None],
        window: Callable[[], int] | None = None,
    ) -> GuestProcess:
        """Start a command; raises SpawnError, or tells it by ``GuestProcess.after_start``. Owns the
        descriptors in ``request`` either way.

        ``on_output(STDOUT | STDERR, bytes)`` gets at most ``window()`` bytes; when the window was
        0, call ``process.resume_output()`` once it is not. ``on_exit`` comes after the last output
        and never from within this call.
        """
        started = time.monotonic()
        before = self.limit_hits()
        stdio = Stdio(request, self._open_null)
        try:
            if len(self._running) >= MAX_RUNNING:
                raise SpawnError(
                    "request", errno.EAGAIN, f"{MAX_RUNNING} commands are running already"
                )
            stdio.open()
            with self._oom_score:
                pid, report = self._spawner.begin(request, stdio.child())
        except SpawnError as error:
            stdio.close_ours()
            self._spawner.explain(error, request)
            raise
        except OSError as error:  # no descriptor is left, say
            stdio.close_ours()
            raise SpawnError("request", error.errno or 0) from None
        except BaseException:
            stdio.close_ours()
            raise
        finally:
            stdio.close_childs()
        disk_paths = (*self._disk_paths, request.cwd or self._spawner.home)
        process = GuestProcess(
            self._loop,
            request,
            pid,
            started,
            on_exit,
            lambda: disk_is_full(disk_paths),
            lambda: first_grown(before, self.limit_hits()),
        )
        self._running[pid] = process
        try:
            if report >= 0:
                process.watch_start(report, lambda error: self._spawner.explain(error, request))
            self._attach(process, stdio, on_output, process.once_started(window or _always))
        except OSError as error:  # what watches it cannot be had: it would run unseen
            self._give_up(process, stdio)
            raise SpawnError("request", error.errno or 0) from None
        return process

    def reap(self) -> None:
        """Wait for every child that has ended; the ones we did not start are orphans."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if os.WIFSTOPPED(status):
                let_go(pid, os.WSTOPSIG(status))
                continue
            process = self._running.pop(pid, None)
            if process is not None:
                cpu_ms = (usage.ru_utime + usage.ru_stime) * 1000
                process.reaped(status, cpu_ms, usage.ru_maxrss << 10)

    def end_all(self) -> None:
        """Kill every command, and what has outlived its parent and come to us as an orphan."""
        for process in self:
            process.abandon()
        for _ in range(MAX_END_ROUNDS):
            children = own_children()
            for pid in children:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            if not children:
                return
            # Its own children become ours when it has ended. It is not waited for: what traces it
            # keeps its end from us, and may be a child of its own that we have not killed yet.
            before = children
            self.reap()
            if own_children() == before:
                time.sleep(_END_PAUSE_S)

    def close(self) -> None:
        self._oom_score.close()
        if self._null >= 0:
            os.close(self._null)
            self._null = -1

    def _attach(
        self, process: GuestProcess, stdio: Stdio, on_output: OnOutput, window: Callable[[], int]
    ) -> None:
        if stdio.feed >= 0:
            terminal = stdio.request.pty is not None
            process.stdin = Stdin(self._loop, stdio.feed, terminal=terminal)
            if terminal:
                process.terminal = os.dup(stdio.feed)
        for number, fd in stdio.pumped.items():
            process.pumps[number] = Pump(
                self._loop,
                fd,
                limit=stdio.request.limits.get("output"),
                window=window,
                deliver=partial(on_output, number),
                on_over=process.overflow,
                on_end=process.pump_ended,
            )

    def _give_up(self, process: GuestProcess, stdio: Stdio) -> None:
        """End one that was not attached as a whole, with the descriptors that are not its own."""
        for number in process.pumps:
            del stdio.pumped[number]
        if process.stdin is not None:
            stdio.feed = -1
        process.abandon()
        stdio.close_ours()

    def _open_null(self) -> int:
        if self._null < 0:
            try:
                self._null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                message = f"/dev/null: {error.strerror}"
                raise SpawnError("request", error.errno or 0, message) from None
        return self._null


def _always() -> int:
    return NO_LIMIT


def own_children() -> list[int]:
    """Lists their pids; [] where the kernel does not tell (CONFIG_PROC_CHILDREN)."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def first_grown(before: Mapping[str, int], after: Mapping[str, int]) -> str | None:
    """Returns the first cause that was hit meanwhile, by this command or one beside it."""
    return next((name for name, count in after.items() if count > before.get(name, 0)), None)


def disk_is_full(paths: Iterable[str]) -> bool:
    """Return whether one of the file systems has no block or no inode left for us. One that nobody
    may write here failed nobody: an image's that is packed has none left at any time."""
    for path in paths:
        try:
            found = os.statvfs(path)
        except (OSError, ValueError):
            continue
        if found.f_flag & os.ST_RDONLY:
            continue
        if (found.f_blocks and not found.f_bavail) or (found.f_files and not found.f_favail):
            return True
    return False
