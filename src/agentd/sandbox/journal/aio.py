"""Following a journal from asyncio: no thread, and nothing to do for a follower that is idle."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

from agentd.sandbox.journal.events import STREAMS, Event
from agentd.sandbox.journal.journal import Journal


async def follow(
    journal: Journal,
    cursor: Mapping[str, int] | None = None,
    *,
    streams: Sequence[str] = STREAMS,
    limit: int = 256 << 10,
) -> AsyncIterator[list[Event]]:
    """Events as they come, about ``limit`` bytes at a time, until the end."""
    loop = asyncio.get_running_loop()
    more = asyncio.Event()

    def notify() -> None:
        loop.call_soon_threadsafe(more.set)

    with contextlib.closing(journal.follow(cursor, streams=streams, notify=notify)) as follower:
        while not follower.ended:
            more.clear()
            if events := follower.read(limit):
                yield events
            else:
                await more.wait()
