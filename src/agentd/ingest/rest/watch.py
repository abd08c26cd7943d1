"""Changes in a sandbox's folders, as server-sent events."""

from typing import Any

from agentd.ingest.rest.api import Exchange, encode
from agentd.ingest.rest.output import EVENTS, last_event
from agentd.ingest.web.bridge import Bridge
from agentd.ingest.web.errors import Draining
from agentd.ingest.web.exchange import Aborted
from agentd.ingest.web.followed import Followed
from agentd.ingest.web.standing import standing
from agentd.model.api import ChangeView
from agentd.model.errors import AgentdError, without_frames

# Bytes of changes that wait for a slow client, which is then cut off; a change is its path and so
# many more.
_MOST = 4 << 20
_COUNTED = 1 << 20  # for the caller: most are read at once
_EACH = 400


async def watch(exchange: Exchange, query: dict[str, Any]) -> None:
    """Tell changes, as they happen."""
    web, service = exchange.web, await exchange.authenticate()
    id_, path, recursive = exchange.path["id"], query["path"], query["recursive"]

    def watching(bridge: Bridge[ChangeView | None], wake: int) -> None:
        # What the client should know is raised by the call, before there is a change.
        changes = iter(service.files.watch(id_, path, recursive=recursive, wake=wake))
        bridge.offer(None, 0)  # it has begun
        if any(not bridge.offer(one, len(one.path) + _EACH) for one in changes):
            del changes  # ended before the error is told: a traceback would keep it
            if not bridge.closed:  # else it was stopped amid a change
                raise Aborted("the client is too slow for so many changes")

    followed = Followed(_MOST, watching)
    with exchange.staying(followed, _COUNTED):
        followed.start(web.threads.watches)
        found = await followed.first()
        headers = [(b"content-type", EVENTS.encode()), (b"cache-control", b"no-store")]
        await exchange.start(200, headers)
        await exchange.write(b":\n\n" + _events(found))
        async with standing(exchange, service, ("read",), id_, followed.stop) as caller:
            async for found in followed.pieces(web.limits.heartbeat):
                await exchange.write(_events(found) or b":\n\n")
        error = caller.error
        if error is None:
            try:
                followed.result()
            except Aborted:
                raise
            except AgentdError as failure:  # its sandbox has ended, say
                error = without_frames(failure)
            if error is None and web.draining:  # what changes from now on it is not told
                error = Draining()
        await exchange.end(b"" if error is None else last_event(error))


def _events(changes: list[ChangeView | None]) -> bytes:
    return b"".join(b"event: change\ndata: %b\n\n" % encode(one) for one in changes if one)
