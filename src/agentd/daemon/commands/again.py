"""A detached command that is followed again, by the next daemon or whoever has its sandbox now."""

import contextlib
import os
import select
import threading
from collections.abc import Callable, Sequence
from signal import SIGKILL
from typing import TYPE_CHECKING

from agentd.model.errors import AgentdError, BackendLost, Conflict, GuestError
from agentd.model.running import Stepped
from agentd.transport.events import Chunk

if TYPE_CHECKING:
    from agentd.model.result import Exit
    from agentd.model.running import Running
    from agentd.sandbox.handle import SandboxHandle
    from agentd.transport.guest import Guest
    from agentd.transport.stream import StreamCommand


class BeginAgain:
    """Follows a detached command again, from those bytes of stdout and stderr on; in a sandbox
    that is paused, as soon as that goes on."""

    def __init__(
        self, handle: "SandboxHandle", tag: str, place: tuple[int, int], pid: int | None = None
    ) -> None:
        """``pid``: what it was known to have."""
        self._handle = handle
        self._tag = tag
        self.place: tuple[int, int] | None = place
        self.pid = pid

    def __call__(self, guest: "Guest") -> "Running":
        place = self.place or (0, 0)
        return FollowedAgain(self._handle, lambda: guest.attach(self._tag, place, hold=True))


def kill_once_it_goes_on(handle: "SandboxHandle", tag: str, later: Callable[[], None]) -> bool:
    """Kill a detached command that nobody follows. Return True where its sandbox is paused: it is
    killed when that goes on, or ends with it, and ``later`` is called then."""

    def kill() -> None:
        with contextlib.suppress(AgentdError, OSError):
            handle.guest.tell("signal", tag=tag, signal=int(SIGKILL), target="group")

    def kill_later() -> None:
        kill()
        with contextlib.suppress(AgentdError):
            later()

    if handle.if_paused(kill_later):
        return True
    kill()
    return False


class FollowedAgain(Stepped):
    """Implements ``model.running.Running``. While its sandbox is paused nothing comes of it,
    and what is asked of it is a Conflict; with a sandbox that ends meanwhile it ends, too."""

    def __init__(self, handle: "SandboxHandle", attach: "Callable[[], StreamCommand]") -> None:
        self._handle = handle
        self._attach = attach
        self._running: StreamCommand | None = None
        self._lock = threading.Lock()  # of ``_wake``
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        return None if self._running is None else self._running.pid

    @property
    def cursor(self) -> tuple[int, int] | None:
        """Where its output is followed from; None before the agent has told."""
        return None if self._running is None else self._running.cursor

    @property
    def truncated(self) -> bool:
        return self._running is not None and self._running.truncated

    @property
    def exit(self) -> "Exit | None":
        return None if self._running is None else self._running.exit

    @property
    def backlog(self) -> int:
        return 0 if self._running is None else self._running.backlog

    def step(
        self, timeout: float | None = None, extra_fds: Sequence[int] = ()
    ) -> tuple[list[Chunk], list[int]]:
        if self._running is None:
            return [], self._wait(timeout, extra_fds)
        try:
            return self._running.step(timeout, extra_fds)
        except (BackendLost, GuestError):
            # Paused again before the agent had answered, which it cannot now.
            if self._running.cursor is not None or not self._handle.if_paused(self._stir):
                raise
            running, self._running = self._running, None
            running.close()
            return [], []

    def wait(self, timeout: float | None = None) -> "Exit":
        return self._now().wait(timeout)

    def write(self, data: bytes) -> None:
        self._now().write(data)

    def close_stdin(self) -> None:
        self._now().close_stdin()

    def signal(self, number: int, target: str = "group") -> None:
        self._now().signal(number, target)

    def resize(self, rows: int, cols: int) -> None:
        self._now().resize(rows, cols)

    def kill(self) -> None:
        self._now().kill()

    def close(self) -> None:
        """Leave the command, which goes on. Idempotent."""
        with self._lock:
            wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)
        if self._running is not None:
            self._running.close()

    def _look(self) -> None:
        """Follow it, unless its sandbox is paused."""
        if self._handle.if_paused(self._stir):
            return
        try:
            self._running = self._attach()
        except (BackendLost, GuestError):
            if not self._handle.if_paused(self._stir):  # it is again
                raise

    def _stir(self) -> None:
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _wait(self, timeout: float | None, extra_fds: Sequence[int]) -> list[int]:
        poll = select.poll()
        for fd in (self._wake, *extra_fds):
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)]
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            self._look()
        return [fd for fd in ready if fd != self._wake]

    def _now(self) -> "StreamCommand":
        if self._running is None:
            raise Conflict(f"sandbox {self._handle.id} is paused", remediation="resume it first")
        return self._running
