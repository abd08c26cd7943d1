"""Signals to the CLI, as an exception at moments when it may come."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """An ending signal came; ``number`` is which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Raises Interrupted inside ``allowed`` blocks; elsewhere a signal waits for the next one.

    So no signal can cut a sandbox's set-up or its clean-up in half. ``wake`` becomes readable when
    the terminal's size has changed.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._allowed = False
        self._old: dict[int, Any] = {}
        self.wake = self._wake_end = -1

    def __enter__(self) -> "Interrupts":
        self.wake, self._wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in _ENDING:
            # An ignored signal stays ignored, as under nohup.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old[number] = signal.signal(number, self._on_end)
        self._old[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._on_resize)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
        os.close(self.wake)
        os.close(self._wake_end)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        self._allowed = True
        try:
            if self.pending is not None:
                raise Interrupted(self.pending)
            yield
        finally:
            self._allowed = False

    def drain(self) -> None:
        os.read(self.wake, 4096)

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        first, self.pending = self.pending is None, self.pending or number
        if self._allowed and first:
            raise Interrupted(number)

    def _on_resize(self, number: int, frame: FrameType | None) -> None:
        # A full pipe is readable already.
        with suppress(BlockingIOError):
            os.write(self._wake_end, b"w")
