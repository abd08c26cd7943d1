"""Bytes that stay in memory, of requests until they are answered, and of answers until their client
has taken them: no caller fills it with theirs."""

from collections import Counter

from agentd.model.errors import Full
from agentd.model.units import readable_size


class Holds:
    """At most ``size`` bytes at once, and of one caller while it has fewer than are left: alone it
    gets half of them, beside another a third. Belongs to the event loop."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._of: Counter[str] = Counter()

    def take(self, who: str, size: int, *, refuse: bool = True) -> None:
        """Count them as ``who``'s until ``give_back``. Raises Full, if they may be ``refuse``d."""
        if refuse:
            self.require_room(who, size)
        self._of[who] += size
        self._held += size

    def require_room(self, who: str, size: int = 1) -> None:
        """Raises Full."""
        if self._of.get(who, 0) + size > self._size - self._held:
            raise Full(
                "too many bytes of requests and answers wait for their clients",
                cause=f"{readable_size(self._of.get(who, 0))} of {readable_size(self._held)} are"
                f" yours, and {readable_size(self._size)} the most",
                remediation="read the answers that wait, and send it again; or write large data to"
                " a file",
                retry_after=1.0,
            )

    def give_back(self, who: str, size: int) -> None:
        self._of[who] -= size
        self._held -= size
        if not self._of[who]:
            del self._of[who]
