"""``WS .../attach`` and ``WS .../exec``: a process's streams, both ways.

server: binary, one byte for the stream, eight for the first byte's cursor, and the data;
        text {"event": "started" | "lost" | "exit" | "error", ...}
client: binary, its stdin; text {"op": "eof"}, {"op": "signal", ...}, {"op": "resize", ...}
"""

import asyncio
import contextlib
import struct
from collections.abc import Mapping

import msgspec

from agentd.ingest.rest.api import Socket, event
from agentd.ingest.rest.follower import Follower, Stopped
from agentd.ingest.rest.operation import Parameter, decode_json, parse
from agentd.ingest.rest.output import without_output
from agentd.ingest.web.bridge import Bridge
from agentd.ingest.web.rooms import STREAM, caller
from agentd.ingest.web.standing import Standing, standing
from agentd.model.api import ExecBody, ProcessView
from agentd.model.door import DoorService
from agentd.model.errors import AgentdError, InvalidInput
from agentd.model.output import STREAMS, OutputEvent
from agentd.model.service import Service

_SCOPES = ("run", "read")
_HEAD = struct.Struct(">BQ")
_NUMBER = {"stdout": 1, "stderr": 2, "pty": 3}
_AHEAD = 1 << 20  # bytes of stdin that wait for the process
_EACH = 64  # that a message takes beside its bytes
ATTACH_QUERY = tuple(
    Parameter(name, int, 0, help=f"the cursor of the first byte of {name} wanted")
    for name in STREAMS
)


class _Op(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op"):
    pass


class _Eof(_Op, frozen=True, tag="eof"):
    pass


class _Signal(_Op, frozen=True, tag="signal"):
    signal: int = 15
    target: str = "group"


class _Resize(_Op, frozen=True, tag="resize"):
    rows: int
    cols: int


_OPS = _Eof | _Signal | _Resize


async def attach(socket: Socket) -> None:
    """Follow from the cursors on. Closing it detaches; the process goes on."""
    query = parse(socket.scope["query_string"], ATTACH_QUERY)
    service = await socket.authenticate()
    id_, process = socket.path["id"], socket.path["proc"]
    service.require("attach", _SCOPES, id_)  # what runs is fed and signalled, and followed
    view = await socket.web.threads.short.run(service.commands.get, id_, process)
    await _Session(socket, service, id_, view).run(query, accept=True)


async def execute(socket: Socket) -> None:
    """Start the command of the first message, an ExecBody."""
    web, id_ = socket.web, socket.path["id"]
    parse(socket.scope["query_string"], ())  # it takes none
    service = await socket.authenticate()
    service.require("start", _SCOPES, id_)
    await socket.accept()
    try:
        async with asyncio.timeout(web.limits.first_message):
            first = await socket.receive()
    except TimeoutError:
        raise InvalidInput(
            "no ExecBody came in time", remediation="send it as the first message, at once"
        ) from None
    body = decode_json(ExecBody, first)
    web.answers.require_room(caller.get(), STREAM)
    view = await web.threads.waits.run(service.commands.start, id_, body)
    await _Session(socket, service, id_, view).run({}, accept=False)


class _Session:
    def __init__(self, socket: Socket, service: DoorService, id_: str, view: ProcessView) -> None:
        self._socket = socket
        self._service = service
        self._place = id_, view.id
        self._view = view
        self._stdin: _Stdin | None = None  # most only follow

    async def run(self, cursors: Mapping[str, int], *, accept: bool) -> None:
        socket = self._socket
        follower = Follower(socket.door, socket.link)
        sending: asyncio.Task[None] | None = None
        try:
            await follower.open(self._service, *self._place, cursors)
            if accept:
                await socket.accept()
            await socket.send_text(event("started", process=self._view))
            id_, stop = self._place[0], follower.stop
            async with standing(socket, self._service, _SCOPES, id_, stop) as caller:
                sending = asyncio.create_task(self._send(follower, caller))
                await self._receive()
        finally:
            follower.stop()
            if self._stdin is not None:
                self._stdin.stop()
            if sending is not None:
                await asyncio.wait([sending])
            follower.close()

    async def _send(self, follower: Follower, caller: Standing) -> None:
        """What is sent to a client who has gone, or as the daemon drains, is not missed: it has
        the cursors, and comes back."""
        with contextlib.suppress(Exception):
            try:
                async for events in follower.events():
                    for piece in events:
                        await self._tell(piece)
            except Stopped:
                if caller.error is None:
                    await self._socket.close(1012, "the daemon is about to end")
                else:
                    await self._socket.fail(caller.error)
            else:
                await self._socket.close()

    async def _tell(self, piece: OutputEvent) -> None:
        if piece.kind == "data":
            head = _HEAD.pack(_NUMBER[piece.stream], piece.offset)
            await self._socket.send(head + piece.data)
        elif piece.kind == "lost":
            end = piece.offset + piece.length
            lost = {"stream": piece.stream, "from": piece.offset, "to": end}
            await self._socket.send_text(event("lost", **lost))
        else:
            result = None if piece.result is None else without_output(piece.result)
            await self._socket.send_text(event("exit", result=result))

    async def _receive(self) -> None:
        """Receive until the client closes. What a process refuses is told, and ends nothing."""
        while True:
            message = await self._socket.receive()
            try:
                await self._do(message)
            except AgentdError as error:
                await self._socket.send_error(error)

    async def _do(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            await self._feed(message, eof=False)
            return
        op = decode_json(_OPS, message)
        commands, run = self._service.commands, self._socket.web.threads.control.run
        if isinstance(op, _Eof):
            await self._feed(b"", eof=True)
        elif isinstance(op, _Signal):
            await run(commands.signal, *self._place, op.signal, op.target)
        else:
            await run(commands.resize, *self._place, op.rows, op.cols)

    async def _feed(self, data: bytes, *, eof: bool) -> None:
        if self._stdin is None:
            self._stdin = _Stdin(self._socket, self._service, self._place)
        await self._stdin.put(data, eof=eof)


class _Stdin:
    """In order, and beside the rest: a process that does not read can still be signalled."""

    def __init__(self, socket: Socket, service: Service, place: tuple[str, str]) -> None:
        self._socket = socket
        self._service = service
        self._place = place
        self._pieces: Bridge[tuple[bytes, bool]] = Bridge(_AHEAD)
        self._task = asyncio.create_task(self._write())

    async def put(self, data: bytes, *, eof: bool) -> None:
        await self._pieces.put((data, eof), len(data) + _EACH)

    def stop(self) -> None:
        """Stop; a thread goes on with what it is writing already."""
        self._task.cancel()

    async def _write(self) -> None:
        write, run = self._service.commands.write, self._socket.web.threads.waits.run
        while (pieces := await self._pieces.take()) is not None:
            for data, eof in pieces:
                try:
                    await run(write, *self._place, data, eof=eof)
                except AgentdError as error:
                    with contextlib.suppress(Exception):
                        await self._socket.send_error(error)
