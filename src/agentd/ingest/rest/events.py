"""``GET /v1/events``: a page of what happened, or server-sent events as it happens.

No thread waits for an event: whoever follows is woken, and what there is is read then.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from agentd.ingest.rest.api import Exchange, answer, encode
from agentd.ingest.rest.operation import OperationTable, Parameter
from agentd.ingest.rest.output import EVENTS, last_event
from agentd.ingest.web.signal import Signal
from agentd.ingest.web.standing import Standing, standing
from agentd.model.door import DoorService
from agentd.model.errors import Forbidden, Unauthenticated
from agentd.model.events import EventPage, wait_seconds

OPERATIONS = OperationTable()
_PAGE = 100
_QUERY = (
    Parameter("after", default="", help="the id of the event, or next of the page, before"),
    Parameter("limit", int, _PAGE),
    Parameter("wait", default="0", help="for the first one, a minute at most; 30s, say"),
)


class _Reader:
    """Reads on from an id. Stopped by the end of its connection, and by a daemon that drains."""

    def __init__(self, after: str, limit: int) -> None:
        self._more = Signal()
        self.after = after
        self._limit = limit
        self.stopped = False

    async def next(self, exchange: Exchange, caller: Standing, wait: float) -> EventPage:
        """What there is now, or within ``wait`` seconds. Raises what ``caller.check`` does."""
        loop = asyncio.get_running_loop()
        end, run = loop.time() + wait, exchange.web.threads.short.run
        while True:
            self._more.clear()
            page = await run(caller.service.events.read, self.after, limit=self._limit)
            caller.check()
            left = end - loop.time()
            if page.events or page.lost or left <= 0 or self.stopped:
                self.after = page.next
                return page
            await self._more.wait(left)

    def stop(self) -> None:
        self.stopped = True
        self._more.set()

    @contextlib.asynccontextmanager
    async def listening(self, exchange: Exchange, service: DoorService) -> AsyncIterator[Standing]:
        silence = service.events.listen(self._more.set)
        try:
            with exchange.staying(self):
                async with standing(exchange, service, ("read",), "", self.stop) as caller:
                    yield caller
        finally:
            silence()


@OPERATIONS.row("GET", "/v1/events", "read", query=_QUERY, answer=EventPage)
async def _events(exchange: Exchange, query: dict[str, Any]) -> None:
    """Tell what happens to one's sandboxes: a page, or server-sent events as it happens."""
    wait = wait_seconds(query["wait"])
    service = await exchange.authenticate()
    service.require("events", ("read",))
    streams = EVENTS in (exchange.headers.get("accept") or "").lower()
    after = (exchange.headers.get("last-event-id") if streams else None) or query["after"]
    reader = _Reader(after, query["limit"])
    async with reader.listening(exchange, service) as caller:
        if not streams:
            await exchange.answer(answer(await reader.next(exchange, caller, wait)))
            return
        # What is wrong with the request is an answer yet.
        page = await reader.next(exchange, caller, 0)
        headers = [(b"content-type", EVENTS.encode()), (b"cache-control", b"no-store")]
        await exchange.start(200, headers)
        last = b""
        try:
            while True:
                await exchange.write(_encoded(page) or b":\n\n")
                if reader.stopped:
                    break
                page = await reader.next(exchange, caller, exchange.web.limits.heartbeat)
        except (Unauthenticated, Forbidden) as error:
            last = last_event(error)
        await exchange.end(last)


def _encoded(page: EventPage) -> bytes:
    # Who comes back with its id is told only what is lost from then on.
    lost = b"id: %b\nevent: lost\ndata: {}\n\n" % page.first.encode() if page.lost else b""
    return lost + b"".join(
        b"id: %b\nevent: %b\ndata: %b\n\n" % (one.id.encode(), one.kind.encode(), encode(one))
        for one in page.events
    )
