"""A small event loop on epoll: readiness callbacks, timers and signals, one thread.

Not on ``selectors``: its Python took a tenth of a short command's time.
"""

import _signal  # type: ignore[import-not-found]  # typeshed has none
import contextlib
import heapq
import os
import select
import time
from collections.abc import Callable

from agentd.linux.kernel import KERNEL

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
# Hang-ups and errors are always told, as readiness for whatever was asked: the call then says why.
_FOR_READ = ~WRITE
_FOR_WRITE = ~READ
_SWEEP_TIMERS = 64
_FOREVER = -1
# A longer wait is none for epoll_wait(2), which counts milliseconds in an int: 24.8 days at most.
# What is due later is waited for again.
_LONGEST_S = 86_400.0
# struct signalfd_siginfo begins with a u32, the signal's number: on a little-endian machine one
# byte tells it. As many are read at once as there are signals.
_SIGNAL_BYTES = 128
_SIGNALS_READ = 64 * _SIGNAL_BYTES


class Timer:
    """A call that will be made once, unless cancelled."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """Not thread-safe. A callback that raises goes to ``on_error`` and is no longer watched.

    Without ``on_error`` it ends ``run``.
    """

    def __init__(self, on_error: Callable[[Exception], None] | None = None) -> None:
        self._on_error = on_error
        self._soon: list[Callable[[], None]] = []
        self._signals: dict[int, Callable[[], None]] = {}
        self._old_handlers: dict[int, object] = {}
        self._blocked: list[int] = []
        self._signal_fd = -1
        self._epoll = select.epoll(select.EPOLL_CLOEXEC)
        # A descriptor's events and callback; a list of its own for every watch.
        self._watches: dict[int, tuple[int, Callable[[int], None]]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._sweep_at = _SWEEP_TIMERS
        self._count = 0
        self._running = False

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(ready events)`` while ``fd`` is ready; replaces an earlier watch."""
        if fd in self._watches:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watches[fd] = events, callback

    def forget(self, fd: int) -> None:
        """Stop watching; harmless when not watched. Call it before closing the descriptor."""
        if self._watches.pop(fd, None) is not None:
            # EBADF: it was closed, and epoll has forgotten it by itself.
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, callback)
        self._count += 1
        if len(self._timers) >= self._sweep_at:
            # Cancelled timers would stay until they are due: a long limit on every short command.
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._sweep_at = max(_SWEEP_TIMERS, 2 * len(self._timers))
        heapq.heappush(self._timers, (timer.when, self._count, timer))
        return timer

    def soon(self, callback: Callable[[], None]) -> None:
        """Call once, after the callbacks of this round: what they all wrote leaves in one send."""
        self._soon.append(callback)

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call ``callback()`` in the loop after signal ``number``; once for several. Main thread.

        The signal is blocked until ``close``, and read from a descriptor: a handler would interrupt
        the poll first. The loop's own descriptor counts as watched: end such a loop with ``stop``.
        """
        if number not in self._signals:
            # The C functions: those of the signal module make an enumeration of each number.
            if number not in _signal.pthread_sigmask(_signal.SIG_BLOCK, (number,)):
                self._blocked.append(number)
            # With SIGCHLD ignored the kernel would reap the children itself.
            self._old_handlers[number] = _signal.signal(number, _signal.SIG_DFL)
        self._signals[number] = callback
        self._signal_fd = KERNEL.signalfd(self._signals, self._signal_fd)
        self.watch(self._signal_fd, READ, self._on_signals)

    def run(self) -> None:
        """Runs until ``stop``, or until nothing is watched and no timer is left."""
        self._running = True
        self._run_soon()
        while self._running and (self._watches or self._due() is not None):
            round_ = [(fd, told, self._watches.get(fd)) for fd, told in self._poll()]
            for fd, told, watch in round_:
                # An earlier callback of this round may have dropped or replaced this one.
                if watch is not None and self._watches.get(fd) is watch:
                    self._guarded(watch[1], _ready(told) & watch[0], fd)
            self._fire()
            self._run_soon()

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        """Free the descriptors and put the signal handlers back; idempotent."""
        self._epoll.close()
        self._watches.clear()
        if self._signal_fd < 0:
            return
        self._pending_signals()  # nobody waits for them any more: they shall not be delivered
        for number, handler in self._old_handlers.items():
            _signal.signal(number, handler)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, self._blocked)
        os.close(self._signal_fd)
        self._signal_fd = -1

    def _on_signals(self, _: int) -> None:
        for number in self._pending_signals():
            self._signals[number]()

    def _pending_signals(self) -> set[int]:
        try:
            told = os.read(self._signal_fd, _SIGNALS_READ)[::_SIGNAL_BYTES]
        except BlockingIOError:
            return set()
        # gVisor tells one signal a read, in 130 bytes: what follows is none.
        return self._signals.keys() & set(told)

    def _guarded(self, callback: Callable[[int], None], events: int, fd: int) -> None:
        try:
            callback(events)
        except Exception as error:
            if self._on_error is None:
                raise
            # Ready as it is, it would raise again at once. Signals must stay.
            if fd != self._signal_fd:
                self.forget(fd)
            self._on_error(error)

    def _poll(self) -> list[tuple[int, int]]:
        due = self._due()
        seconds = _FOREVER if due is None else min(max(0.0, due - time.monotonic()), _LONGEST_S)
        return self._epoll.poll(seconds)

    def _due(self) -> float | None:
        """When the next timer that is not cancelled fires."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def _fire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                self._guarded_call(callback)

    def _run_soon(self) -> None:
        while self._soon:
            callbacks, self._soon = self._soon, []
            for callback in callbacks:
                self._guarded_call(callback)

    def _guarded_call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(error)


def _ready(told: int) -> int:
    return (READ if told & _FOR_READ else 0) | (WRITE if told & _FOR_WRITE else 0)
