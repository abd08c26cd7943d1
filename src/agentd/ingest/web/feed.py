"""An upload, from the event loop that receives it to the thread that writes it."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator

from agentd.ingest.web.signal import Signal

_AHEAD = 1 << 20  # bytes that may wait for the thread


class Feed:
    """Iterated by one thread. What breaks the upload is raised there."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._room = Signal()
        self._chunks: deque[bytes] = deque()
        self._waiting = 0
        self._error: Exception | None = None
        self._ended = False
        self._is_spent = False

    async def fill(self, chunks: AsyncIterator[bytes]) -> None:
        try:
            async for chunk in chunks:
                with self._change:
                    if self._is_spent:
                        continue
                    self._room.clear()
                    self._chunks.append(chunk)
                    self._waiting += len(chunk)
                    full = self._waiting > _AHEAD
                    self._change.notify()
                if full:
                    await self._room.wait()
        except Exception as error:
            self.fail(error)
        except asyncio.CancelledError:
            self.fail(ConnectionAbortedError("the upload was given up"))
            raise
        else:
            with self._change:
                self._ended = True
                self._change.notify()

    def spend(self) -> None:
        """Nobody iterates it: what came and what is to come is dropped."""
        with self._change:
            self._is_spent = True
            self._chunks.clear()
        self._room.set()

    def fail(self, error: Exception) -> None:
        with self._change:
            self._error = self._error or error
            self._ended = True
            self._change.notify()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._chunks or self._ended)
                if self._error is not None:
                    raise self._error
                if not self._chunks:
                    return
                chunks, self._chunks = self._chunks, deque()
                self._waiting = 0
            self._room.set()
            yield from chunks
