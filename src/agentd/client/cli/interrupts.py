"""Signals to the CLI, as an exception at moments when it may come."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_STOP = b"z"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_SECONDS = 10.0  # within which another signal is of an impatient finger


class Interrupted(BaseException):
    """An ending signal came; ``number`` is which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def unwinding() -> Iterator[None]:
    """Raise Interrupted for SIGTERM and SIGHUP, as Ctrl-C raises, where what is half made would be
    left behind; a second one ends at once."""
    old: dict[int, Any] = {}

    def restore() -> None:
        while old:
            signal.signal(*old.popitem())

    def end(number: int, frame: FrameType | None) -> None:
        restore()
        raise Interrupted(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            old[number] = signal.signal(number, end)
    try:
        yield
    finally:
        restore()


class Interrupts:
    """Raises Interrupted inside ``allowed`` blocks; elsewhere a signal waits for the next one.

    So no signal can cut a sandbox's set-up or its clean-up in half; ``of_daemon`` one does that
    comes AGAIN_SECONDS after another, as a daemon may hang. ``wake`` becomes readable when any
    signal has come, before Python knows: one that comes as a wait begins must end it. ``ended``
    does when it was an ending one, for what is asked of a daemon, which may wait for somebody.
    """

    def __init__(self, *, of_daemon: bool = False) -> None:
        self.pending: int | None = None
        self._of_daemon = of_daemon
        self._allowed = False
        self._since = 0.0  # of time.monotonic(): when one was heeded last, or was to wait
        self._old: dict[int, Any] = {}
        self.wake = self._wake_end = self.ended = self._old_wakes = -1

    def __enter__(self) -> "Interrupts":
        self.wake, self._wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._old_wakes = signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)
        for number in _ENDING:
            # An ignored signal stays ignored, as under nohup.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old[number] = signal.signal(number, self._on_end)
        self._old[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._on_resize)
        return self

    def __exit__(self, *exc: object) -> None:
        self._since = float("inf")  # none is heeded any more
        for number, old in self._old.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(self._old_wakes)
        for fd in (self.wake, self._wake_end, self.ended):
            os.close(fd)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        self._allowed = True
        try:
            self.check()
            yield
        finally:
            self._allowed = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Raise Interrupted for what is given up in the block since ``ended`` is readable."""
        try:
            yield
        except Exception:
            self.check()
            raise

    def check(self) -> None:
        """Raise Interrupted if an ending signal has come: a place where it may."""
        if self.pending is not None:
            raise Interrupted(self.pending)

    def drain(self) -> bool:
        """Make ``wake`` unreadable; whether it was a stop that was asked for."""
        return _STOP in os.read(self.wake, 4096)

    def take_stops(self) -> None:
        """Let SIGTSTP make ``wake`` readable, and no more; whoever reads that calls ``stop``."""
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
            self._old[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._on_stop)

    @staticmethod
    def stop() -> None:
        """Stop this process until it is continued."""
        os.kill(os.getpid(), signal.SIGSTOP)

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        first, self.pending = self.pending is None, self.pending or number
        os.eventfd_write(self.ended, 1)
        now = time.monotonic()
        again = self._of_daemon and not first and now - self._since > AGAIN_SECONDS
        if first or again:
            self._since = now
        if again or (first and self._allowed):
            raise Interrupted(number)

    def _on_resize(self, number: int, frame: FrameType | None) -> None:
        self._wake(b"w")

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._wake(_STOP)

    def _wake(self, why: bytes) -> None:
        # A full pipe is readable already.
        with suppress(BlockingIOError):
            os.write(self._wake_end, why)
