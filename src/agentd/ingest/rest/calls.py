"""Calls of capabilities: to their end, or followed as server-sent events; and receipts of them."""

import asyncio
import base64
import os
import threading
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from agentd.ingest.rest.api import Exchange
from agentd.ingest.rest.operation import LARGE, Arguments, Operation, decode
from agentd.ingest.rest.output import EVENTS
from agentd.ingest.rest.respond import encode
from agentd.ingest.rest.worded import error_in_json
from agentd.ingest.service import Service
from agentd.ingest.web.errors import internal
from agentd.ingest.web.signal import Signal
from agentd.ingest.web.status import status_of
from agentd.model.answer import Answer
from agentd.model.api import CallBody, CallView, CapabilityView
from agentd.model.errors import AgentdError, Full
from agentd.model.principal import Principal

_AHEAD = 1 << 20  # bytes that wait for a slow client; then the call does
_PIECE = 256  # that one more piece takes, however short it is
_ENVELOPE = "application/vnd.dsse.envelope.v1+json"


class Gone(AgentdError):
    """Whoever followed the call has left: it is ended."""

    code = "cancelled"


class _Following:
    """The thread that calls, seen from the loop: what it emits, then its answer or its error."""

    def __init__(self) -> None:
        self._room = threading.Condition()
        self._pieces: deque[tuple[str, bytes]] = deque()
        self._size = 0
        self._more = Signal()
        self._gone = False
        # Readable when nobody follows any more: the call's commands are ended.
        self._cancel, self._canceller = os.pipe2(os.O_CLOEXEC)
        self.answer: CallView | None = None
        self.error: AgentdError | None = None
        self._is_over = False

    def run(self, service: Service, who: Principal, body: CallBody, raw: bytes) -> None:
        """In a thread, to the call's end."""
        try:
            self.answer = service.call(who, body, raw, emit=self._emit, cancel=self._cancel)
        except AgentdError as error:
            self.error = error
        except Exception as error:
            self.error = internal(error, "a call")
        finally:
            os.close(self._cancel)
            self._is_over = True
            self._more.set()

    def refused(self) -> None:
        """``run`` never is: there is no thread for it."""
        os.close(self._cancel)

    def stop(self) -> None:
        """Idempotent; of the loop."""
        with self._room:
            self._gone = True
            self._room.notify_all()
            canceller, self._canceller = self._canceller, -1
        if canceller >= 0:
            os.close(canceller)

    async def events(self, beat: float) -> AsyncIterator[list[tuple[str, bytes]]]:
        while True:
            self._more.clear()
            over = self._is_over  # what is emitted before that is taken in this round
            with self._room:
                found = list(self._pieces)
                self._pieces.clear()
                self._size = 0
                self._room.notify_all()
            if found:
                yield found
            elif over:
                return
            elif not await self._more.wait(beat):
                yield []

    def _emit(self, kind: str, data: bytes) -> None:
        with self._room:
            self._room.wait_for(lambda: self._gone or self._size < _AHEAD)
            if self._gone:
                raise Gone("nobody follows the call any more")
            self._pieces.append((kind, data))
            self._size += len(data) + _PIECE
        self._more.set()


async def _stream(exchange: Exchange, query: dict[str, Any]) -> None:
    web, service = exchange.web, exchange.door.service
    who = await exchange.authenticate()  # before the body is read
    raw = await exchange.body(web.limits.body, LARGE)
    body: CallBody = decode(exchange, CallBody, raw)
    following = _Following()
    running = asyncio.create_task(web.threads.waits.run(following.run, service, who, body, raw))
    web.add(following)
    exchange.link.on_lost(following.stop)
    try:
        await _begun(running, following)
        headers = [(b"content-type", EVENTS.encode()), (b"cache-control", b"no-store")]
        await exchange.start(200, headers)
        async for pieces in following.events(web.limits.heartbeat):
            parts = [_event(kind, base64.b64encode(data)) for kind, data in pieces]
            await exchange.write(b"".join(parts) or b":\n\n")
        await running
        await exchange.write(_last(following))
        await exchange.end()
    finally:
        web.remove(following)
        exchange.link.forget(following.stop)
        following.stop()


async def _begun(running: "asyncio.Task[None]", following: _Following) -> None:
    """Raises Full where there is no room: the answer has not begun, and can say so."""
    await asyncio.sleep(0)  # with its first step it has a place, or none
    if running.done():
        try:
            await running
        except Full:
            following.refused()
            raise


def _last(following: _Following) -> bytes:
    error = following.error
    if error is None:
        return _event("result", encode(following.answer))
    # The answer began with 200: what it would have been otherwise stands in here.
    return _event("error", encode({**_fields(error), "status": status_of(error)}))


def _fields(error: AgentdError) -> dict[str, str]:
    return msgspec.structs.asdict(error_in_json(error))


def _event(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def _call(service: Service, who: Principal, a: Arguments) -> CallView:
    return service.call(who, a.body, a.raw)


async def _receipt(exchange: Exchange, query: dict[str, Any]) -> None:
    """As it was signed: nothing of it is decoded on the way."""
    who, service = await exchange.authenticate(), exchange.door.service
    found = await exchange.web.threads.short.run(service.receipt, who, exchange.path["id"])
    await exchange.answer(Answer(200, found, {"content-type": _ENVELOPE}))


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/capabilities",
        scope="read",
        help="what can be called: parameters, needs, examples",
        call=lambda s, who, a: s.capabilities(who),
        answer=list[CapabilityView],
    ),
    Operation(
        method="POST",
        path="/v1/call",
        scope="run",
        help="call a capability, in a sandbox or in one made for it",
        call=_call,
        body=CallBody,
        answer=CallView,
        waits=True,
        once=True,
    ),
    Operation(
        method="POST",
        path="/v1/call/stream",
        scope="run",
        help="the same, followed: events of what it has before its end (data is base64), then "
        "result or error",
        stream=_stream,
        body=CallBody,
        answer=EVENTS,
    ),
    Operation(
        method="GET",
        path="/v1/receipts/{id}",
        scope="read",
        help="the signed receipt of one's own execution: a DSSE envelope",
        stream=_receipt,
        answer=_ENVELOPE,
    ),
    Operation(
        method="GET",
        path="/v1/receipt-key",
        scope="read",
        help="the public key that receipts verify with, PEM",
        call=lambda s, who, a: s.receipt_key(who),
        answer=str,
    ),
)
