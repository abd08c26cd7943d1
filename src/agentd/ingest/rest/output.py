"""``GET .../output``: server-sent events, or one stream's raw bytes."""

import binascii
import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec

from agentd.ingest.rest.api import Exchange, encode, error_in_json
from agentd.ingest.rest.follower import Follower, Stopped
from agentd.ingest.rest.operation import OperationTable, Parameter
from agentd.ingest.web.exchange import Aborted
from agentd.ingest.web.standing import Standing, standing
from agentd.ingest.web.status import FAILED, status_of
from agentd.model import words
from agentd.model.api import ResultView
from agentd.model.capability import CallFailed
from agentd.model.errors import AgentdError, InvalidInput
from agentd.model.output import STREAMS, OutputEvent

OUTPUT = OperationTable()
EVENTS = "text/event-stream"
_FLUSH_SECONDS = 10.0
_MAX_CURSOR = 1 << 62
_NO_STORE = (b"cache-control", b"no-store")
_QUERY = (
    Parameter("stream", default="", help="stdout, stderr or pty; of events: all by default"),
    Parameter("from", int, 0, help="the cursor of the first byte wanted"),
    Parameter("follow", bool, None, help="wait for more; of events: true by default"),
)


@OUTPUT.row(
    "GET",
    "/v1/sandboxes/{id}/processes/{proc}/output",
    "read",
    query=_QUERY,
    answer="application/octet-stream",
)
async def _output(exchange: Exchange, query: dict[str, Any]) -> None:
    """Tell what it wrote and writes; as server-sent events, or one stream's raw bytes."""
    accept = exchange.headers.get("accept") or ""
    is_events = EVENTS in accept.lower()
    streams = (query["stream"],) if query["stream"] else STREAMS
    if any(name not in STREAMS for name in streams):
        raise InvalidInput(f"there is no stream {streams[0][:64]!r}", remediation=_names())
    if not is_events and len(streams) > 1:
        raise InvalidInput(
            "the query parameter 'stream' is missing",
            remediation=f"{_names()}; or send Accept: {EVENTS} for all of them",
        )
    if query["from"] > _MAX_CURSOR:
        raise InvalidInput(
            f"from={query['from']} is no cursor", remediation="give the number of a byte"
        )
    cursors = dict.fromkeys(streams, query["from"])
    if is_events and (last := exchange.headers.get("last-event-id")):
        cursors.update(parse_event_id(last))
    follower = Follower(exchange.door, exchange.link)
    try:
        id_, process = exchange.path["id"], exchange.path["proc"]
        service = await exchange.authenticate()
        await follower.open(service, id_, process, cursors, streams)
        async with standing(exchange, service, ("read",), id_, follower.stop) as caller:
            if is_events:
                follow = query["follow"] is not False
                await _send_events(exchange, follower, cursors, caller, follow=follow)
            else:
                await _send_raw(exchange, follower, query["from"], follow=bool(query["follow"]))
    finally:
        follower.close()


async def _send_events(
    exchange: Exchange,
    follower: Follower,
    cursors: dict[str, int],
    caller: Standing,
    *,
    follow: bool,
) -> None:
    await exchange.start(
        200,
        [
            (b"content-type", EVENTS.encode()),
            _NO_STORE,
            (b"x-accel-buffering", b"no"),  # nginx would hold events back
        ],
    )
    beat = exchange.web.limits.heartbeat
    # A client that comes back asks from the last id on: where we stop, it goes on.
    with contextlib.suppress(Stopped):
        async for events in follower.events(follow=follow, beat=beat):
            parts = [encode_event(event, cursors) for event in events]
            await exchange.write(b"".join(parts) or b":\n\n")
    await exchange.end(b"" if caller.error is None else last_event(caller.error))


def last_event(error: AgentdError) -> bytes:
    """Say why a stream ends that began with 200: the four fields of the error, and the status that
    the request would be answered with now; with ``call`` where that is in the header of it."""
    fields = {**msgspec.structs.asdict(error_in_json(error)), "status": status_of(error)}
    if isinstance(error, CallFailed):
        fields["call"] = FAILED
    return b"event: error\ndata: %b\n\n" % encode(fields)


def encode_event(event: OutputEvent, cursors: dict[str, int]) -> bytes:
    """Write it as text/event-stream, and move ``cursors`` behind it."""
    if event.kind == "exit":
        data = b"{}" if event.result is None else encode(without_output(event.result))
        return b"event: exit\ndata: %b\n\n" % data
    end = event.offset + event.length
    cursors[event.stream] = end
    id_ = event_id(cursors)
    if event.kind == "lost":
        lost = {"stream": event.stream, "from": event.offset, "to": end}
        return b"id: %b\nevent: lost\ndata: %b\n\n" % (id_, encode(lost))
    data = binascii.b2a_base64(event.data, newline=False)
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (id_, event.stream.encode(), data)


def event_id(cursors: Mapping[str, int]) -> bytes:
    """Write it as STDOUT:STDERR, and of a process with a terminal as STDOUT:STDERR:PTY."""
    out, err, pty = (cursors.get(name, 0) for name in STREAMS)
    return b"%d:%d:%d" % (out, err, pty) if pty else b"%d:%d" % (out, err)


def parse_event_id(text: str) -> dict[str, int]:
    """Return the cursors that it says. Raises InvalidInput."""
    numbers = text.strip().split(":")
    good = all(n.isascii() and n.isdigit() and len(n) < 19 for n in numbers)
    if not good or len(numbers) not in (2, 3):
        raise InvalidInput(
            f"Last-Event-ID {text[:64]!r} is not an id of this stream",
            remediation="send the id of the last event, as it came",
        )
    return dict(zip(STREAMS, map(int, numbers), strict=False))


def without_output(result: ResultView) -> ResultView:
    told = words.cause(result.cause, words.in_json)
    return msgspec.structs.replace(result, cause=told, stdout="", stderr="")


async def _send_raw(exchange: Exchange, follower: Follower, start: int, *, follow: bool) -> None:
    """Raises Aborted where bytes are lost amid the answer: it has no way to say so."""
    try:
        async for events in follower.events(follow=follow):
            lost = [at for at, event in enumerate(events) if event.kind == "lost"]
            first = events[0] if lost[:1] == [0] and not exchange.started else None
            amid = next((at for at in lost if at or first is None), len(events))
            data = [event.data for event in events[:amid] if event.kind == "data"]
            if not exchange.started:
                await _start_raw(exchange, start, first)
            if data:
                await exchange.write(data[0] if len(data) == 1 else b"".join(data))
            if amid < len(events):
                await exchange.flush(_FLUSH_SECONDS)  # what is before it is the client's
                raise Aborted("output was lost")
    except Stopped:
        raise Aborted("the stream was stopped before its end") from None
    if not exchange.started:
        await _start_raw(exchange, start, None)
    await exchange.end()


async def _start_raw(exchange: Exchange, start: int, lost: OutputEvent | None) -> None:
    headers = [(b"content-type", b"application/octet-stream"), _NO_STORE]
    if lost is not None:
        start = lost.offset + lost.length
        headers.append((b"agentd-lost", b"%d-%d" % (lost.offset, start)))
    headers.append((b"agentd-cursor", b"%d" % start))
    await exchange.start(200, headers)


def _names() -> str:
    return f"there are {', '.join(STREAMS)}"
