"""Answers that a relay or a terminator owes its host: each says that it has handled all that it was
told before. The host waits for one to know of all that was done, and kills what owes one for long.
"""

import threading
import time
from collections.abc import Callable


class OwedAnswers:
    """Each method is called with the lock of ``changed`` held."""

    __slots__ = ("_answered", "_asked", "_changed", "_doubted", "_send", "_since")

    def __init__(
        self, changed: threading.Condition, send: Callable[[dict[str, object]], None]
    ) -> None:
        """``send`` tells the process of now something. Raises SandboxError where it cannot."""
        self._changed, self._send = changed, send
        self._asked = self._answered = 0
        self._since = 0.0
        self._doubted = False

    def wait(self, seconds: float, gone: Callable[[], bool]) -> None:
        """Wait until it has told what was done until now, or is ``gone``, so many ``seconds`` at
        most. Raises SandboxError where it cannot be asked."""
        asked = self._ask()
        self._changed.wait_for(lambda: self._answered >= asked or gone(), seconds)

    def answered(self, number: int) -> None:
        """Note one: where it is asked all the time it may owe some all the time."""
        self._answered, self._since, self._doubted = number, time.monotonic(), False

    def begin(self) -> None:
        """Begin with another process, which owes nothing."""
        self._answered, self._doubted = self._asked, False

    def look(self, seconds: float, kill: Callable[[], None], *, ask: bool = True) -> None:
        """Call ``kill`` for one that owes an answer and gave none for so many seconds, at the
        second look that finds it so: it may be we who stood still, and what it has said is heard
        between them. Or ``ask`` anew one that owes none. Raises SandboxError."""
        if self._answered < self._asked:
            was_late, self._doubted = self._doubted, time.monotonic() - self._since > seconds
            if was_late and self._doubted:
                kill()
        elif ask:
            self._ask()

    def _ask(self) -> int:
        if self._answered == self._asked:
            self._since = time.monotonic()
        self._asked += 1
        self._send({"sync": self._asked})
        return self._asked
