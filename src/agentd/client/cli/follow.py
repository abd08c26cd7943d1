"""A command on the caller's terminal or pipes: output out, input in, until its end."""

import os
import select
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from agentd.client.cli.interrupts import Interrupts
from agentd.client.cli.streams import write_all
from agentd.model.characters import Whole
from agentd.model.running import drive

if TYPE_CHECKING:
    from agentd.model.running import RunningCommand

_READ = 64 << 10
_BACKLOG = 256 << 10  # bytes of stdin taken ahead of the command
DETACH = b"\x10\x11"  # Ctrl-P Ctrl-Q, as others have it
HELD_SECONDS = 0.5  # that its second key has; the first one alone is the last line of a shell


class Follow:
    """Follows a command. ``stand_still`` is what a stop of ours does to the sandbox; each of
    ``ticks`` is called every so many seconds. ``leaves``: Ctrl-P Ctrl-Q lets go of the command."""

    def __init__(
        self,
        running: "RunningCommand",
        interrupts: Interrupts,
        *,
        stdin: bool = False,
        tty: bool = False,
        leaves: bool = False,
        stand_still: Callable[[], None] | None = None,
        ticks: Mapping[Callable[[], object], float] | None = None,
    ) -> None:
        self._running = running
        self._interrupts = interrupts
        self._feeding = stdin or tty
        self._tty = tty
        self._leaves = leaves and tty
        self._stand_still = stand_still
        self._ticks = ticks or {}
        self._due = dict.fromkeys(self._ticks, 0.0)  # of time.monotonic()
        # On one terminal a piece of the other stream would come between the bytes of a character.
        shared = not tty and os.isatty(1) and os.isatty(2)
        self._whole = Whole() if shared else None
        self._held = b""  # the begin of DETACH, perhaps
        self._held_until = 0.0
        self._left = False

    def run(self) -> bool:
        """Follow it to its end; False when it was let go of. Raises Interrupted."""
        with ExitStack() as stack:
            if self._tty:
                from agentd.client.cli import terminal

                stack.enter_context(terminal.raw())
            if self._stand_still is not None:
                self._interrupts.take_stops()
            # Only here may a signal cut in: all is put in order around it.
            with self._interrupts.allowed():
                self._loop()
            for name, data in () if self._whole is None else self._whole.rest():
                write_all(1 if name == "stdout" else 2, data)
        return not self._left

    def _passed(self, name: str, data: bytes) -> bytes:
        return data if self._whole is None else self._whole.feed(name, data)

    def _loop(self) -> None:
        for tick in self._ticks:
            self._put_off(tick)
        for chunks, ready in drive(self._running, self._waiting, self._until_tick):
            for name, data in chunks:
                write_all(1 if name == "stdout" else 2, self._passed(name, data))
            if self._interrupts.wake in ready:
                self._woken()
            # What is late has waited for a second key, which output may have kept us from.
            late = bool(self._held) and time.monotonic() >= self._held_until
            if 0 in ready or (late and select.select([0], [], [], 0)[0]):
                self._feed()
            elif late:
                self._pass_held()
            if self._left:
                return
            for tick, due in self._due.items():
                if time.monotonic() >= due:
                    tick()
                    self._put_off(tick)

    def _put_off(self, tick: Callable[[], object]) -> None:
        self._due[tick] = time.monotonic() + self._ticks[tick]

    def _until_tick(self) -> float | None:
        dues = [*self._due.values(), *([self._held_until] if self._held else [])]
        first = min(dues, default=None)
        return None if first is None else max(0.0, first - time.monotonic())

    def _waiting(self) -> list[int]:
        waiting = [self._interrupts.wake]
        if self._feeding and self._running.backlog < _BACKLOG:
            waiting.append(0)
        return waiting

    def _feed(self) -> None:
        """Pass on one read of our stdin, or its end."""
        try:
            data = os.read(0, _READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._feeding = False
            self._pass_held()
            self._running.close_stdin()
            return
        data = self._held + data
        self._held = b""
        if self._leaves and DETACH in data:
            data, self._left = data.partition(DETACH)[0], True
        elif self._leaves and data.endswith(DETACH[:1]):
            data, self._held = data[:-1], DETACH[:1]
            self._held_until = time.monotonic() + HELD_SECONDS
        if data:
            self._running.write(data)

    def _pass_held(self) -> None:
        held, self._held = self._held, b""
        if held:
            self._running.write(held)

    def _woken(self) -> None:
        stopped = self._interrupts.drain()
        if stopped and self._stand_still is not None:
            self._stand_still()
        if self._tty:
            from agentd.client.cli import terminal

            now = terminal.size()
            self._running.resize(now.rows, now.cols)
