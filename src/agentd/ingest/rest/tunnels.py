"""``WS /v1/sandboxes/{id}/tunnels/{port}``: plain bytes to a server inside, whatever it speaks.

binary messages are bytes, both ways; the text {"op": "eof"} says that no more comes from the
client, the event eof that no more comes from inside. Closing it closes the connection inside.
"""

import asyncio
import re

import msgspec

from agentd.ingest.rest.api import Socket, event
from agentd.ingest.rest.operation import decode_json, parse
from agentd.ingest.web.pipe import Pipe, piped
from agentd.ingest.web.standing import Standing, standing
from agentd.ingest.web.websocket import Closed
from agentd.model.errors import InvalidInput

_LAST_PORT = 65535


class _Eof(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="eof"):
    pass


def port_of(text: str) -> int:
    """Return the number of a port, 1 to 65535. Raises InvalidInput."""
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text, re.ASCII) or int(text) > _LAST_PORT:
        raise InvalidInput(f"{text[:16]!r} is no port", remediation=f"give 1 to {_LAST_PORT}")
    return int(text)


async def tunnel(socket: Socket) -> None:
    parse(socket.scope["query_string"], ())  # it takes none
    id_, port = socket.path["id"], port_of(socket.path["port"])
    service = await socket.authenticate()
    async with piped(socket, lambda: service.ports.open(id_, port)) as pipe:
        await socket.accept()
        async with standing(socket, service, ("ports",), id_, pipe.abort) as caller:
            await _relay(socket, pipe, caller)


async def _relay(socket: Socket, pipe: Pipe, caller: Standing) -> None:
    """Until both have ended, the client has gone, or one of them breaks."""
    up = asyncio.create_task(_up(socket, pipe))
    down = asyncio.create_task(_down(socket, pipe, caller))
    try:
        await asyncio.wait([up, down], return_when=asyncio.FIRST_EXCEPTION)
    finally:
        up.cancel()
        down.cancel()
        await asyncio.wait([up, down])
    for task in (up, down):
        if not task.cancelled():
            task.result()
    await pipe.finish()
    await socket.close()


async def _up(socket: Socket, pipe: Pipe) -> None:
    """Raises Closed, by which the rest of what comes from inside is given up."""
    while True:
        message = await socket.receive()
        if isinstance(message, str):
            decode_json(_Eof, message)
            pipe.half_close()
            return
        await pipe.send(message)


async def _down(socket: Socket, pipe: Pipe, caller: Standing) -> None:
    while data := await pipe.recv():
        await socket.send(data)
    caller.check()
    if socket.link.is_lost:
        raise Closed
    await socket.send_text(event("eof"))
