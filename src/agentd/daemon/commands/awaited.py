"""Commands whose callers wait for their ends: a daemon that shuts down ends these, and no other."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from agentd.daemon.commands.ends import SHUT_DOWN

if TYPE_CHECKING:
    from agentd.daemon.commands.command import Command


class AwaitedCommands:
    """Knows them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._going: dict[str, Command] = {}
        self._ending = False

    @contextlib.contextmanager
    def one(self, command: "Command") -> Iterator[None]:
        """Count it among them within the block."""
        with self._lock:
            self._going[command.id] = command
            late = self._ending
        try:
            if late:
                command.cancel(SHUT_DOWN)
            yield
        finally:
            with self._lock:
                del self._going[command.id]

    def end(self) -> None:
        """End them, and each that a call begins after it: whoever waits is told so."""
        with self._lock:
            self._ending, going = True, list(self._going.values())
        for command in going:
            command.cancel(SHUT_DOWN)

    def wait_idle(self, seconds: float) -> bool:
        """Wait until there is none; False when there is still one.

        What was started without waiting goes on in its sandbox when we end.
        """
        deadline = time.monotonic() + seconds
        while self._going and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self._going
