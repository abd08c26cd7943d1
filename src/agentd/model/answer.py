"""An answer over HTTP, and how it comes to be."""

from collections.abc import Awaitable, Callable

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """A whole answer, as it is recorded. ``replayed``: an earlier request did it."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = {}
    replayed: bool = False


#: What makes an answer, and what does that in a thread.
Work = Callable[[], Answer]
Carry = Callable[[Work], Awaitable[Answer]]
#: Raises where a repeat may not have the answer. It is given the names of the acts that somebody
#: approved for the first request; None says that whatever must be approved will be.
Authorise = Callable[[frozenset[str] | None], None]
