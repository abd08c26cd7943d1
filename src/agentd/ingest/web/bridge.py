"""The one way between the event loop and a thread: a queue of so many bytes, either way round.

Who puts waits while it is full, who takes while it is empty, and both are told when the other side
ends it or goes away.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Generic, TypeVar

from agentd.ingest.web.errors import ShutDown
from agentd.ingest.web.signal import Signal
from agentd.model import context
from agentd.model.errors import AgentdError

T = TypeVar("T")


class FollowerGone(AgentdError):
    """Nobody takes what is given any more."""

    code = "cancelled"


class Bridge(Generic[T]):
    """Carries items; made on the loop. ``put`` and ``take`` are the loop's; ``give``, ``offer``,
    ``next`` and iteration a thread's. Either may ``end`` what it puts, and ``close`` what it takes.

    It is full once more than ``most`` bytes wait. ``poke`` is called when the loop has put or taken
    something, for a thread that waits in a poll of its own.
    """

    def __init__(self, most: int, poke: Callable[[], None] = lambda: None) -> None:
        self._most = most
        self._poke = poke
        self._change = threading.Condition()  # for a thread
        self._signal = Signal()  # for the loop
        self._awaited = False  # whether the loop waits for a change
        self._items: deque[tuple[T, int]] = deque()
        self._size = 0
        self._ended = False
        self._error: Exception | None = None
        self.closed = False

    @property
    def is_full(self) -> bool:
        return self._size > self._most

    @property
    def is_over(self) -> bool:
        """Whether nothing is there, and nothing will come."""
        return self._ended and not self._items

    # --- on the loop ---

    async def put(self, item: T, size: int) -> None:
        """Wait until there is room. What nobody takes any more is dropped."""
        while True:
            self._signal.clear()
            with self._change:
                if self.closed:
                    return
                if not self.is_full:
                    self._add(item, size)
                    break
                self._awaited = True
            await self._signal.wait()
        self._poke()

    async def take(self, beat: float | None = None) -> list[T] | None:
        """Take all that is there; [] where nothing came for ``beat`` seconds; None at the end.

        Raises the error that it was ended with, behind what came before.
        """
        while True:
            self._signal.clear()
            with self._change:
                found = self._take()
                is_over = self.is_over
                self._awaited = not found and not is_over
            if found:
                self._poke()
                return found
            if is_over:
                self._check()
                return None
            if not await self._signal.wait(beat):
                return []

    # --- in a thread ---

    def give(self, item: T, size: int) -> None:
        """Wait until there is room. Raises FollowerGone or ShutDown where nobody takes it any
        more."""
        with self._change:
            self._change.wait_for(lambda: self.closed or not self.is_full)
            if self.closed and context.client().is_shut():
                raise ShutDown
            if self.closed:
                raise FollowerGone("its follower has disconnected")
            self._add(item, size)

    def offer(self, item: T, size: int) -> bool:
        """Put without waiting; return False where there is no room, or nobody to take it."""
        with self._change:
            if self.closed or self.is_full:
                return False
            self._add(item, size)
        return True

    def next(self) -> T | None:
        """Return the next one, if it is there."""
        with self._change:
            if not self._items:
                return None
            item, size = self._items.popleft()
            self._size -= size
            self._changed()
        return item

    def __iter__(self) -> Iterator[T]:
        """Yield until the end. Raises the error that it was ended with."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._items or self.is_over)
                found = self._take()
            if not found:
                self._check()
                return
            yield from found

    # --- on either side ---

    def end(self, error: Exception | None = None) -> None:
        """Note that nothing more is put; what is there is still taken. Idempotent."""
        with self._change:
            if not self._ended:
                self._ended, self._error = True, error
            self._changed()
        self._poke()

    def close(self) -> None:
        """Want nothing more: ``put`` drops it, ``give`` raises FollowerGone. What is there can
        still be taken, and who takes still waits for the end. Idempotent."""
        with self._change:
            self.closed = True
            self._changed()
        self._poke()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    # --- under the lock ---

    def _add(self, item: T, size: int) -> None:
        self._items.append((item, size))
        self._size += size
        self._changed()

    def _take(self) -> list[T]:
        found = [item for item, _ in self._items]
        if found:
            self._items.clear()
            self._size = 0
            self._changed()
        return found

    def _changed(self) -> None:
        self._change.notify_all()
        if self._awaited:
            self._awaited = False
            self._signal.set()


async def fill(bridge: Bridge[bytes], chunks: AsyncIterator[bytes]) -> None:
    """Put all of ``chunks``; what breaks them, or cancels this, ends it as an error."""
    try:
        async for chunk in chunks:
            await bridge.put(chunk, len(chunk))
    except Exception as error:
        bridge.end(error)
    except asyncio.CancelledError:
        bridge.end(ConnectionAbortedError("the upload was given up"))
        raise
    else:
        bridge.end()
