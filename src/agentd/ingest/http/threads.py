"""The service blocks; the event loop must not. Each kind of call has threads of its own."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from agentd.ingest.http.limits import Limits
from agentd.model.errors import Full

P = ParamSpec("P")
R = TypeVar("R")


class Room:
    """At most ``size`` calls at once. A further one is refused, or with ``queue`` waits its turn."""

    def __init__(self, name: str, size: int, *, queue: bool = False) -> None:
        self.name = name
        self._size = size
        self._free = None if queue else threading.Semaphore(size)
        self._pool = ThreadPoolExecutor(size, f"http-{name}")

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """A caller that is cancelled leaves its call running: it holds its place to its end."""
        if self._free is None:
            return await asyncio.wrap_future(self._pool.submit(call, *args, **kwargs))
        if not self._free.acquire(blocking=False):
            raise Full(
                "too many requests wait for sandboxes",
                cause=f"{self._size} of this kind ({self.name}) are the most",
                remediation="send it again later",
            )
        try:
            future = self._pool.submit(call, *args, **kwargs)
        except BaseException:
            self._free.release()
            raise
        future.add_done_callback(self._release)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Waits for no call: the service is what ends them."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _release(self, _: object) -> None:
        if self._free is not None:
            self._free.release()


class Threads:
    def __init__(self, limits: Limits) -> None:
        self.short = Room("short", limits.short, queue=True)
        self.waits = Room("waits", limits.waits)
        self.transfers = Room("transfers", limits.transfers, queue=True)
        self.uploads = Room("uploads", limits.uploads)
        self.tunnels = Room("tunnels", limits.tunnels)
        self.watches = Room("watches", limits.watches)

    def close(self) -> None:
        for room in vars(self).values():
            room.close()
