"""How often a relay or a terminator may die, and whose network ends then: that of the sandbox for
which it did something each time, where it was one's, and all of them where nobody knows."""

import time

#: So many deaths within so many seconds, and it is not started again.
MOST, WITHIN = 5, 60.0
#: The same of those at one sandbox's doing, whose network ends: all others have connections broken
#: off by each.
MOST_OF_ONE, WITHIN_OF_ONE = 3, 3600.0
_NOBODY = 0


class DeathCount:
    def __init__(self) -> None:
        self._at: dict[int, list[float]] = {}

    def add(self, sandbox: int = _NOBODY) -> str:
        """Count one more, while it worked for ``sandbox``, or for nobody; return why that is too
        often, or ""."""
        most, within = (MOST_OF_ONE, WITHIN_OF_ONE) if sandbox else (MOST, WITHIN)
        now = time.monotonic()
        found = [*(each for each in self._at.get(sandbox, ()) if now - each < within), now]
        self._at[sandbox] = found
        if len(found) < most:
            return ""
        self.forget(sandbox)
        if sandbox:
            return f"what serves it died {most} times at what it did"
        return f"it died {most} times within {within:g} s"

    def forget(self, sandbox: int) -> None:
        self._at.pop(sandbox, None)
