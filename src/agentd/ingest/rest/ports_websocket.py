"""WebSocket to a server inside: message by message, each side with a handshake of its own."""

import asyncio
from collections.abc import Iterator
from typing import Any

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from agentd.ingest.rest.api import Socket
from agentd.ingest.rest.ports import Target, request_headers
from agentd.ingest.web.pipe import Pipe, piped
from agentd.ingest.web.standing import Standing, standing
from agentd.ingest.web.websocket import Closed
from agentd.model.door import DoorService
from agentd.model.errors import GuestError

_MESSAGE = 4 << 20  # bytes, of the server inside
_AT_ONCE = 2 << 10  # bytes of its frames that are parsed
_IN_A_ROW = 64  # of these that are passed on
_OPCODES = {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}


async def forward(socket: Socket) -> None:
    target = Target(socket.scope)
    await carry(socket, target, await socket.authenticate())


async def carry(socket: Socket, target: Target, service: DoorService) -> None:
    async with piped(socket, lambda: service.ports.open(target.id, target.port)) as pipe:
        inside = _Inside(pipe, target, socket.scope)
        await inside.shake_hands()
        await socket.accept(inside.subprotocol)
        async with standing(socket, service, ("ports",), target.id, pipe.abort) as caller:
            await _relay(socket, inside, caller)


async def _relay(socket: Socket, inside: "_Inside", caller: Standing) -> None:
    """Relay until either side closes; then the other is closed too."""
    up = asyncio.create_task(_up(socket, inside))
    down = asyncio.create_task(_down(socket, inside))
    try:
        await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
    finally:
        up.cancel()
        down.cancel()
        await asyncio.wait([up, down])
    caller.check()
    for task in (up, down):
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Closed):
            raise error
    if not socket.link.is_lost and not (up.done() and not up.cancelled()):
        await socket.close(*inside.close_code())


async def _up(socket: Socket, inside: "_Inside") -> None:
    try:
        while True:
            await inside.send(await socket.receive())
    except Closed:
        await inside.close()
        raise


async def _down(socket: Socket, inside: "_Inside") -> None:
    async for message in inside.messages():
        if isinstance(message, str):
            await socket.send_text(message)
        else:
            await socket.send(message)


def _slices(data: bytes) -> Iterator[bytes]:
    """Yield what is parsed at once, for a frame may have two bytes: others wait for the loop."""
    for begin in range(0, len(data), _AT_ONCE):
        yield data[begin : begin + _AT_ONCE]


class _Inside:
    """The client's end of a WebSocket to the server inside."""

    def __init__(self, pipe: Pipe, target: Target, scope: Any) -> None:
        path, _, query = target.target.decode("ascii").partition("?")
        uri = WebSocketURI(False, "localhost", target.port, path, query, None, None)
        offered = [Subprotocol(name) for name in scope["subprotocols"]] or None
        self._pipe = pipe
        self._protocol = ClientProtocol(uri, subprotocols=offered, max_size=_MESSAGE)
        self._headers = [
            (name, value)
            for name, value in request_headers(scope, target)
            if not name.startswith(b"sec-websocket-")
        ]

    @property
    def subprotocol(self) -> str | None:
        return self._protocol.subprotocol

    async def shake_hands(self) -> None:
        """Raises GuestError where the server inside does not want to."""
        request = self._protocol.connect()
        extra = Headers()
        del request.headers["Host"]
        for name, value in self._headers:
            extra[name.decode("ascii")] = value.decode("latin-1")
        request.headers.update(extra)
        self._protocol.send_request(request)
        await self._flush()
        while not self._protocol.handshake_exc and self._protocol.state is State.CONNECTING:
            data = await self._pipe.recv()
            if not data:
                self._protocol.receive_eof()
                break
            for piece in _slices(data):
                self._protocol.receive_data(piece)
                await asyncio.sleep(0)
        # What came right behind the handshake may have closed it already.
        error = self._protocol.handshake_exc
        if error is not None or self._protocol.state is State.CONNECTING:
            known = isinstance(error, InvalidHandshake)
            raise GuestError(
                "the server inside does not open a WebSocket here",
                cause=str(error) if known else "it broke off",
            )

    async def send(self, message: str | bytes) -> None:
        if self._protocol.state is not State.OPEN:
            raise Closed
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        await self._flush()

    async def messages(self) -> Any:
        """Whole ones, str or bytes, until it closes or breaks."""
        parts: list[bytes] = []
        is_text = False
        waiting: Iterator[bytes] = iter(())
        while True:
            for number, event in enumerate(self._events(), 1):
                if not number % _IN_A_ROW:
                    await asyncio.sleep(0)
                if event.opcode is not Opcode.CONT:
                    is_text, parts = event.opcode is Opcode.TEXT, []
                parts.append(bytes(event.data))
                if event.fin:
                    whole = b"".join(parts)
                    yield whole.decode("utf-8", "replace") if is_text else whole
            await self._flush()
            if self._protocol.state is not State.OPEN:
                return
            piece = next(waiting, b"")
            if piece:
                await asyncio.sleep(0)
            else:
                waiting = _slices(await self._pipe.recv())
                piece = next(waiting, b"")
            if not piece:
                self._protocol.receive_eof()
                return
            self._protocol.receive_data(piece)

    async def close(self) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
            await self._flush()

    def close_code(self) -> tuple[int, str]:
        """Return the code for the client; 1005 and the like never travel (RFC 6455 §7.4.1)."""
        found = self._protocol.close_rcvd
        if found is None:
            return 1011, "the server inside broke off"
        sendable = 1000 <= found.code < 5000 and found.code not in (1004, 1005, 1006, 1015)
        return (int(found.code) if sendable else 1000), found.reason

    def _events(self) -> Iterator[Frame]:
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                continue
            if isinstance(event, Frame) and event.opcode in _OPCODES:
                yield event

    async def _flush(self) -> None:
        data = b"".join(self._protocol.data_to_send())
        if data:
            await self._pipe.send(data)
