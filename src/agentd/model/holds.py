"""Bytes that stay in memory until somebody takes them: no caller fills it with theirs."""

import threading
from collections import Counter
from collections.abc import Callable

from agentd.model import context
from agentd.model.errors import AgentdError, Full
from agentd.model.units import readable_size


def has_share(own: int, others: int, most: int) -> bool:
    """Return whether a caller that has ``own`` of ``most``, beside what ``others`` have, may have
    one more: alone it gets half of them, beside another a third."""
    return 2 * own + others < most


class Unwanted(AgentdError):
    """Whoever asked has gone before there was room for the answer."""

    code = "cancelled"


class Holds:
    """At most ``size`` bytes at once, and of one caller while it has fewer than are left: alone it
    gets half of them, beside another a third. Thread-safe."""

    def __init__(self, size: int, what: str, fix: str) -> None:
        """``what`` is wrong where there are too many, and the ``fix``: for who is refused."""
        self._size = size
        self._most = size // 4  # that is waited for at once
        self._words = what, fix
        self._held = 0
        self._of: Counter[str] = Counter()
        self._change = threading.Condition()
        self._closed = False

    def take(self, who: str, size: int, *, refuse: bool = True) -> None:
        """Count them as ``who``'s until ``give_back``. Raises Full, if they may be ``refuse``d."""
        with self._change:
            if refuse:
                self._check(who, size)
            self._add(who, size)

    def hold(self, who: str, size: int, *, lasting: bool = False) -> Callable[[], None]:
        """``take`` them; return what gives them back, once. Beside what is ``lasting``, there is
        always room for what one ``wait``s for. Raises Full."""
        with self._change:
            self._check(who, size + (self._most if lasting else 0))
            self._add(who, size)
        left = [size]

        def give_back() -> None:
            with self._change:
                size = left.pop() if left else 0
            self.give_back(who, size)

        return give_back

    def wait(self, who: str, size: int) -> int:
        """``take``, in a thread, as soon as there is room; return how many it counts, a quarter of
        all at most. Raises Unwanted once the client of the thread's request has gone."""
        size = min(size, self._most)
        gone = context.waiting_client()
        with gone.telling(self._stir), self._change:
            self._change.wait_for(lambda: gone.is_set or self._closed or self._fits(who, size))
            if gone.is_set:
                raise Unwanted("whoever asked has gone before there was room for the answer")
            self._add(who, size)
        return size

    def require_room(self, who: str, size: int = 1) -> None:
        """Raises Full."""
        if self._held:
            with self._change:
                self._check(who, size)

    def give_back(self, who: str, size: int) -> None:
        with self._change:
            self._add(who, -size)
            self._change.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _stir(self) -> None:
        with self._change:
            self._change.notify_all()

    def _fits(self, who: str, size: int) -> bool:
        return not size or self._of.get(who, 0) + size <= self._size - self._held

    def _check(self, who: str, size: int) -> None:
        if not self._fits(who, size):
            what, fix = self._words
            raise Full(
                f"too many bytes {what}",
                cause=f"{readable_size(self._of.get(who, 0))} of {readable_size(self._held)} are"
                f" yours, and {readable_size(self._size)} the most",
                remediation=f"{fix}, and send it again; or write large data to a file",
                retry_after=1.0,
            )

    def _add(self, who: str, size: int) -> None:
        self._of[who] += size
        self._held += size
        if not self._of[who]:
            del self._of[who]
