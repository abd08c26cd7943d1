"""A process's output on the event loop: no thread, and nothing to do while nothing comes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from agentd.ingest.rest.api import Api
from agentd.ingest.web.link import Link
from agentd.ingest.web.rooms import STREAM, caller
from agentd.ingest.web.signal import Signal
from agentd.model.output import STREAMS, Output, OutputEvent
from agentd.model.service import Service

_PIECE = STREAM // 2  # and as much that is being sent


class Stopped(Exception):
    """The client has gone, or the daemon drains."""


class Follower:
    """Reads a process's output. The end of its connection stops it; its maker closes it."""

    def __init__(self, api: Api, link: Link) -> None:
        self._api = api
        self._link = link
        self._more = Signal()
        self._output: Output | None = None
        self._give_back: Callable[[], object] = lambda: None
        self.stopped = False

    async def open(
        self,
        service: Service,
        id_: str,
        process: str,
        cursors: Mapping[str, int],
        streams: Sequence[str] = STREAMS,
    ) -> None:
        """Begin at the cursors. Raises NotFound, Full, and InvalidInput for what is no cursor."""
        self._give_back = self._api.web.answers.hold(caller.get(), STREAM, lasting=True)
        follow, run = service.commands.follow, self._api.web.threads.short.run
        self._output = await run(follow, id_, process, cursors, self._more.set, streams)
        self._api.web.add(self)
        self._link.on_lost(self.stop)

    async def events(
        self, *, follow: bool = True, beat: float | None = None
    ) -> AsyncIterator[Sequence[OutputEvent]]:
        """Yield until the exit; without ``follow`` what is there now. Empty after ``beat`` idle
        seconds. Raises Stopped."""
        if self._output is None:
            raise RuntimeError("it is not open")
        while not self.stopped:
            self._more.clear()
            # It never waits: at most it decompresses a block of the journal.
            events = self._output.read(_PIECE)
            if events:
                yield events
                if events[-1].kind == "exit":
                    return
                # A client that takes all at once would keep the loop from all others.
                await asyncio.sleep(0)
            elif not follow:
                return
            elif not await self._more.wait(beat):
                yield ()
        raise Stopped

    def stop(self) -> None:
        self.stopped = True
        self._more.set()

    def close(self) -> None:
        self._api.web.remove(self)
        self._link.forget(self.stop)
        if self._output is not None:
            self._output.close()
        self._give_back()
