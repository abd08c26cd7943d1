"""Server-sent events, as they come (WHATWG HTML, 9.2)."""

import http.client
from collections.abc import Iterator
from typing import NamedTuple

from agentd.client.http.connection import Woken

MAX_EVENT = 24 << 20  # a call's value has up to 16 MiB of JSON
_READ = 64 << 10


class ServerEvent(NamedTuple):
    name: str
    data: str
    id: str


def events(response: http.client.HTTPResponse) -> Iterator[ServerEvent]:
    """Yield events until the server ends them, or the response's ``wake`` became readable."""
    buffer = bytearray()
    while True:
        try:
            piece = response.read1(_READ)
        except Woken:
            return
        if not piece:
            return
        buffer += piece
        if len(buffer) > MAX_EVENT:
            raise ConnectionResetError(f"an event is larger than {MAX_EVENT} bytes")
        if b"\n\n" in piece or b"\r\n\r\n" in piece or buffer.endswith((b"\n\n", b"\r\n\r\n")):
            whole, _, rest = bytes(buffer).replace(b"\r\n", b"\n").rpartition(b"\n\n")
            buffer = bytearray(rest)
            for block in whole.split(b"\n\n"):
                if (event := _event(block.decode(errors="replace"))) is not None:
                    yield event


def _event(block: str) -> ServerEvent | None:
    """Read an event; None for a comment, which only keeps the connection alive."""
    name, identity = "message", ""
    data: list[str] = []
    for line in block.split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "id":
            identity = value
    return ServerEvent(name, "\n".join(data), identity) if data else None
