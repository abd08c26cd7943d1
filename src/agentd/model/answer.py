"""An answer over HTTP."""

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """A whole answer, as it is recorded. ``replayed``: an earlier request did it."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = {}
    replayed: bool = False
