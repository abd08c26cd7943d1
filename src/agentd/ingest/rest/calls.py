"""Calls of capabilities: to their end, or followed as server-sent events; and receipts of them."""

import base64
from typing import Any

from agentd.ingest.rest.api import Exchange, answer
from agentd.ingest.rest.operation import LARGE, Arguments, OperationTable, decode
from agentd.ingest.rest.output import EVENTS, last_event
from agentd.ingest.web.bridge import Bridge
from agentd.ingest.web.errors import internal
from agentd.ingest.web.followed import Followed
from agentd.model.answer import Answer
from agentd.model.api import CallBody, CallView, CapabilityView
from agentd.model.errors import AgentdError, without_frames
from agentd.model.service import Service

OPERATIONS = OperationTable()
_AHEAD = 256 << 10  # bytes that wait for a slow client; then the call does
_PIECE = 256  # that one more piece takes, however short it is
_ENVELOPE = "application/vnd.dsse.envelope.v1+json"
_SCOPE = "the capability's"
_FOLLOWED = "leave it out, or call by POST /v1/call, which takes a key and follows nothing"


@OPERATIONS.row("GET", "/v1/capabilities", "read")
def _list(service: Service, a: Arguments) -> tuple[CapabilityView, ...]:
    """List what can be called: parameters, needs, examples."""
    return service.capabilities.list()


@OPERATIONS.row("POST", "/v1/call", _SCOPE, body=CallBody, waits=True, is_large=True, once=True)
def _call(service: Service, a: Arguments) -> CallView:
    """Call a capability, in a sandbox or in one made for it."""
    return service.capabilities.request(a.raw)


@OPERATIONS.row("POST", "/v1/call/stream", _SCOPE, body=CallBody, answer=EVENTS, keyless=_FOLLOWED)
async def _stream(exchange: Exchange, query: dict[str, Any]) -> None:
    """Call one and follow it: events of what it has before its end, then result or error.

    The data of events is base64.
    """
    web, service = exchange.web, await exchange.authenticate()  # before the body is read
    raw = await exchange.body(web.limits.body, LARGE)
    decode(exchange, CallBody, raw)  # raises what is wrong with it in REST's words

    def call(bridge: Bridge[tuple[str, bytes]], cancel: int) -> Answer:
        def emit(kind: str, data: bytes) -> None:
            bridge.give((kind, data), len(data) + _PIECE)

        def make() -> Answer:
            return answer(service.capabilities.request(raw, emit=emit, cancel=cancel))

        return exchange.build(make)

    followed = Followed(_AHEAD, call)
    with exchange.staying(followed, 2 * _AHEAD, ends=True):
        followed.start(web.threads.waits)
        headers = [(b"content-type", EVENTS.encode()), (b"cache-control", b"no-store")]
        await exchange.start(200, headers)
        async for pieces in followed.pieces(web.limits.heartbeat):
            parts = [_event(kind, base64.b64encode(data)) for kind, data in pieces]
            await exchange.write(b"".join(parts) or b":\n\n")
        await exchange.write(_last(followed))
        await exchange.end()


def _last(followed: Followed[tuple[str, bytes], Answer]) -> bytes:
    try:
        return _event("result", followed.result().body)
    except AgentdError as error:
        return last_event(without_frames(error))
    except Exception as error:
        return last_event(internal(error, "a call"))


def _event(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


@OPERATIONS.row("GET", "/v1/receipts/{id}", "read", answer=_ENVELOPE)
async def _receipt(exchange: Exchange, query: dict[str, Any]) -> None:
    """Show the signed receipt of one's own execution: a DSSE envelope.

    It is sent as it was signed: nothing of it is decoded on the way.
    """
    service = await exchange.authenticate()
    found = await exchange.web.threads.short.run(service.receipts.get, exchange.path["id"])
    await exchange.answer(Answer(200, found, {"content-type": _ENVELOPE}))


@OPERATIONS.row("GET", "/v1/receipt-key", "read")
def _receipt_key(service: Service, a: Arguments) -> str:
    """Show the public key that receipts verify with, PEM."""
    return service.receipts.key()
