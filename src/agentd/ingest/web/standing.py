"""Streams that go on for hours: who asked for one is asked about anew, now and then."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from agentd.ingest.web.errors import internal
from agentd.ingest.web.exchange import D, WebRequest
from agentd.model.door import DoorService
from agentd.model.errors import AgentdError, Full


class Standing:
    """Tells what became of a stream's caller: its ``service`` now, or ``error``: why none."""

    def __init__(self, service: DoorService) -> None:
        self.service = service
        self.error: AgentdError | None = None

    def check(self) -> None:
        """Raises Unauthenticated, Forbidden or NotFound once the stream is not the caller's."""
        if self.error is not None:
            raise self.error


@contextlib.asynccontextmanager
async def standing(
    request: WebRequest[D],
    service: DoorService,
    scopes: Sequence[str],
    sandbox: str,
    stop: Callable[[], object],
) -> AsyncIterator[Standing]:
    """Ask every ``limits.reauthorise`` seconds, all through the block, whether ``service``'s caller
    still has ``scopes`` and may see ``sandbox``; ``stop`` is called when not.

    A key that was revoked, a caller whose scopes were taken away and a sandbox that is another's
    end a stream so within that time, though its client asks for nothing any more.
    """
    found = Standing(service)
    asking = asyncio.create_task(_ask(request, found, scopes, sandbox, stop))
    request.link.goes_on = True
    try:
        yield found
    finally:
        request.link.goes_on = False
        asking.cancel()
        await asyncio.wait([asking])


async def _ask(
    request: WebRequest[D],
    found: Standing,
    scopes: Sequence[str],
    sandbox: str,
    stop: Callable[[], object],
) -> None:
    quick, run = request.quick, request.web.threads.short.run
    while found.error is None:
        await asyncio.sleep(request.web.limits.reauthorise)
        again = found.service.reauthorise
        try:
            found.service = again(scopes, sandbox) if quick else await run(again, scopes, sandbox)
        except Full:  # no thread to ask in: it is asked the next time
            continue
        except Exception as error:  # whatever it is, nobody has said that the caller still may
            if not isinstance(error, AgentdError):
                error = internal(error, "asking anew who asks")
            found.error = error
            stop()
