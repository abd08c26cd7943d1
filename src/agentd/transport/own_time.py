"""The time of a sandbox, which stands still while that is paused."""

import time


class OwnTime:
    """Seconds that go on as those of ``time.monotonic`` do, unless they stand still."""

    def __init__(self) -> None:
        self._behind = 0.0
        self._since: float | None = None  # when it came to stand still

    def now(self) -> float:
        since = self._since
        return (time.monotonic() if since is None else since) - self._behind

    def stand_still(self, still: bool) -> None:
        """Stop it, or let it go on; for one caller at a time."""
        if still and self._since is None:
            self._since = time.monotonic()
        elif not still and self._since is not None:
            self._behind += time.monotonic() - self._since
            self._since = None
