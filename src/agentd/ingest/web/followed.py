"""A call that lasts, in a thread of its own, and what it has before its end, on the loop."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from agentd.ingest.web.bridge import Bridge
from agentd.ingest.web.rooms import Room

T = TypeVar("T")
R = TypeVar("R")


class Followed(Generic[T, R]):
    """Runs a call; made on the loop, and stopped there. ``call`` gets the bridge for what it has,
    and a descriptor that becomes readable when nobody follows it any more."""

    def __init__(self, most: int, call: Callable[[Bridge[T], int], R]) -> None:
        self._bridge: Bridge[T] = Bridge(most)
        self._call = call
        self._lock = threading.Lock()
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC)
        self._started = False
        self._value: R | None = None
        self._error: Exception | None = None

    def start(self, room: Room) -> None:
        """Run it, followed or not. Raises Full where the room has no place for it."""
        room.run(self._run).add_done_callback(self._settled)
        self._started = True

    async def pieces(self, beat: float) -> AsyncIterator[list[T]]:
        """Yield all that it has by then, each time; nothing after ``beat`` idle seconds."""
        while (found := await self._bridge.take(beat)) is not None:
            yield found

    async def first(self) -> list[T]:
        """Wait for what it has first, and return it. Raises what kept it from having anything."""
        found = await self._bridge.take()
        if found is None:
            self.result()
        return found or []

    def result(self) -> R:
        """Return what it returned or raised, behind its last piece."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # it has returned it

    def stop(self) -> None:
        """Stop: nobody follows it any more. Idempotent; of the loop."""
        self._bridge.close()
        if self._waker >= 0:
            os.close(self._waker)  # the other end becomes readable
            self._waker = -1
        if not self._started:
            self._close_wake()

    def _settled(self, call: "asyncio.Future[None]") -> None:
        """Note that it has run, or that no thread could be had for it."""
        error = None if call.cancelled() else call.exception()
        if isinstance(error, Exception):
            self._error = error
            self._bridge.end()
        self._close_wake()

    def _close_wake(self) -> None:
        with self._lock:
            wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)

    def _run(self) -> None:
        """Do the call, in the thread."""
        try:
            self._value = self._call(self._bridge, self._wake)
        except Exception as error:
            self._error = error
        finally:
            self._close_wake()
            self._bridge.end()
