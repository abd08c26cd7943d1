"""One time limit over all that a fetch does."""

import time

from agentd.model.capability import CallFailed


class Deadline:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, more than 0. Raises CallFailed "timeout"."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.passed()
        return left

    def passed(self) -> CallFailed:
        return CallFailed(
            "timeout",
            f"the fetch took longer than {self.seconds:g} s and was ended",
            remediation="raise timeout_ms, or ask a quicker server",
        )
