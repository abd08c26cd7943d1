"""Changes in a sandbox's folders, as server-sent events."""

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

from agentd.ingest.rest.api import Exchange
from agentd.ingest.rest.output import EVENTS
from agentd.ingest.rest.respond import encode
from agentd.ingest.service import Service
from agentd.ingest.web.exchange import Aborted
from agentd.ingest.web.signal import Signal
from agentd.model.principal import Principal

# Changes that wait for a slow client, and bytes of their paths; then it is cut off.
_MOST = 10_000
_MOST_BYTES = 4 << 20


class _Watch:
    """The thread that waits for changes, seen from the loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake, self._waker = os.pipe()
        self._changes: deque[Mapping[str, str]] = deque()
        self._waiting = 0  # characters of their paths
        self._more = Signal()
        self._begun = False
        self._is_over = False
        self.too_many = False

    async def start(self, running: "asyncio.Task[None]") -> None:
        """Raises what kept it from watching."""
        running.add_done_callback(lambda _: self._more.set())
        while not self._begun:
            if running.done():
                running.result()
                return
            self._more.clear()
            if not self._begun:
                await self._more.wait()

    def run(self, service: Service, who: Principal, id_: str, path: str, recursive: bool) -> None:
        """In a thread, until ``stop``."""
        with self._lock:
            wake, self._wake = self._wake, -1  # from now on it is this thread's to close
        if wake < 0:
            return
        try:
            changes = service.watch(who, id_, path, recursive=recursive, wake=wake)
            self._begun = True
            self._more.set()
            for change in changes:
                with self._lock:
                    self._changes.append(change)
                    self._waiting += len(change["path"])
                self._more.set()
                if len(self._changes) > _MOST or self._waiting > _MOST_BYTES:
                    self.too_many = True
                    break
        finally:
            os.close(wake)
            self._is_over = True
            self._more.set()

    def stop(self) -> None:
        """Idempotent."""
        with self._lock:
            wake, self._wake = self._wake, -1
            waker, self._waker = self._waker, -1
        for fd in (wake, waker):
            if fd >= 0:
                os.close(fd)  # with the waker gone, the other end becomes readable

    async def changes(self, beat: float) -> AsyncIterator[list[Mapping[str, str]]]:
        while True:
            self._more.clear()
            with self._lock:
                found = list(self._changes)
                self._changes.clear()
                self._waiting = 0
            if found:
                yield found
            elif self._is_over:
                return
            elif not await self._more.wait(beat):
                yield []


async def watch(exchange: Exchange, query: dict[str, Any]) -> None:
    who = await exchange.authenticate()
    web, watcher = exchange.web, _Watch()
    place = exchange.path["id"], query["path"], query["recursive"]
    service = exchange.door.service
    running = asyncio.create_task(web.threads.watches.run(watcher.run, service, who, *place))
    web.add(watcher)
    exchange.link.on_lost(watcher.stop)
    try:
        await watcher.start(running)
        headers = [(b"content-type", EVENTS.encode()), (b"cache-control", b"no-store")]
        await exchange.start(200, headers)
        await exchange.write(b":\n\n")
        async for changes in watcher.changes(web.limits.heartbeat):
            parts = [b"event: change\ndata: %b\n\n" % encode(change) for change in changes]
            await exchange.write(b"".join(parts) or b":\n\n")
        await running
        if watcher.too_many:
            raise Aborted("the client is too slow for so many changes")
        await exchange.end()
    finally:
        web.remove(watcher)
        exchange.link.forget(watcher.stop)
        watcher.stop()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # has been told, or nobody is there to be told
