"""What all of the HTTP side works with."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

from starlette.applications import Starlette

from agentd.ingest.service import Service
from agentd.ingest.web.limits import Limits
from agentd.ingest.web.threads import Threads


class Stoppable(Protocol):
    def stop(self) -> None: ...


class Api:
    """``metrics`` gives the text of ``/metrics``; where it is None there is no such path."""

    def __init__(
        self, service: Service, limits: Limits, metrics: Callable[[], bytes] | None = None
    ) -> None:
        self.service = service
        self.limits = limits
        self.metrics = metrics
        self.threads = Threads(limits)
        self.draining = False
        self._streams: set[Stoppable] = set()

    def add(self, stream: Stoppable) -> None:
        """One that goes on for as long as its client wants: stopped when the daemon drains."""
        self._streams.add(stream)
        if self.draining:
            stream.stop()

    def remove(self, stream: Stoppable) -> None:
        self._streams.discard(stream)

    def drain(self) -> None:
        self.draining = True
        for stream in tuple(self._streams):
            stream.stop()

    def close(self) -> None:
        self.threads.close()


def api_of(app: Starlette) -> Api:
    api: Api = app.state.api
    return api


class Signal:
    """An asyncio.Event that any thread may set, also after the loop has ended."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._event.set)

    def clear(self) -> None:
        self._event.clear()

    async def wait(self, timeout: float | None = None) -> bool:
        """False where it was not set in time."""
        if timeout is None:
            return await self._event.wait()
        try:
            async with asyncio.timeout(timeout):
                return await self._event.wait()
        except TimeoutError:
            return False
