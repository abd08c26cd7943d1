"""One request and its answer, over ASGI."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from functools import cached_property

from agentd.ingest.web.errors import RequestTimeout
from agentd.ingest.web.request import D, WebRequest
from agentd.ingest.web.rooms import caller
from agentd.ingest.web.web import Stoppable
from agentd.model.answer import Answer
from agentd.model.errors import AgentdError, InvalidInput, TooLarge

_FLUSH_LOOKS = 0.01
_FREE = 64 << 10  # bytes of a request that count for nobody


class Disconnected(InvalidInput):
    """The client went away amid its request; nobody reads the answer."""


class Answered(Exception):
    """To HEAD, by the head of the answer to GET: the rest is not wanted."""


class Aborted(AgentdError):
    """The answer had begun when it broke: the connection is cut, so that nobody takes it for
    whole."""


class Exchange(WebRequest[D]):
    """A request, and the one answer to it. Belongs to a task of the event loop."""

    started = False
    head_only = False
    _kept = 0  # bytes that stay in memory until it is answered
    _holder = ""  # whose they are

    # -- the request's body --

    @cached_property
    def length(self) -> int | None:
        """The body's; None where it comes in chunks. The parser has made sure of the number."""
        if self.headers.get("transfer-encoding") is not None:
            return None
        return int(self.headers.get("content-length") or 0)

    async def chunks(self, *, whole: bool = False) -> AsyncIterator[bytes]:
        """``whole``: all of it is to come in body_seconds. Raises Disconnected, RequestTimeout."""
        limits, loop = self.web.limits, asyncio.get_running_loop()
        begun, size, more = loop.time(), 0, True
        while more:
            try:
                async with asyncio.timeout(limits.body_seconds):
                    message = await self._receive()
            except TimeoutError:
                raise RequestTimeout("the rest of the body did not come in time") from None
            if message["type"] == "http.disconnect":
                raise Disconnected("the client went away before the end of the body")
            more = message["more_body"]
            size += len(message["body"])
            late = loop.time() - begun - limits.body_seconds
            if more and late > 0 and (whole or size < late * limits.slowest):
                raise RequestTimeout("the body comes too slowly")
            if message["body"]:
                yield message["body"]

    async def body(self, limit: int, fix: str = "send a smaller one") -> bytes:
        """The whole of it. Raises TooLarge, before anything is read where its length is known;
        ``fix`` is what to do then."""
        if (self.length or 0) > limit:
            raise _too_large(limit, fix)
        parts, size = [], 0
        async for chunk in self.chunks(whole=True):
            size += len(chunk)
            if size > limit:
                raise _too_large(limit, fix)
            self.hold(len(chunk))
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def hold(self, size: int, *, refuse: bool = True) -> None:
        """Count so many more bytes as kept in memory until it is answered; the first of each are
        free, so that there is always room for what ends and renews. Raises Full, unless what was
        done must be told: then they count beyond what there is room for."""
        more = max(0, self._kept + size - _FREE) - max(0, self._kept - _FREE)
        if more:
            self._holder = self._holder or caller.get()
            self.web.holds.take(self._holder, more, refuse=refuse)
        self._kept += size

    def release(self) -> None:
        """Nothing of it is kept any more. Idempotent."""
        if self._kept > _FREE:
            self.web.holds.give_back(self._holder, self._kept - _FREE)
        self._kept = 0

    @contextlib.contextmanager
    def staying(self, stream: Stoppable) -> Iterator[None]:
        """Stop the stream when the client goes, when agentd drains, and at the end of the block."""
        self.web.add(stream)
        self.link.on_lost(stream.stop)
        try:
            yield
        finally:
            self.web.remove(stream)
            self.link.forget(stream.stop)
            stream.stop()

    # -- the answer --

    async def answer(self, answer: Answer) -> None:
        """Answer; a large one counts as the caller's until the client has taken most of it."""
        headers = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in answer.headers.items()]
        if answer.status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(answer.body)))
        is_large = len(answer.body) > _FREE
        if is_large:
            self.hold(len(answer.body), refuse=self.scope["method"] == "GET")
        with self.link.transport.holding(), contextlib.suppress(Answered):
            await self.start(answer.status, headers)
            await (self.write if is_large else self.end)(answer.body)
        if is_large and not self.head_only:
            await self.end()

    def require_room(self) -> None:
        """Of what has an effect and may have a large answer, before it is done. Raises Full where
        the caller has no room left for answers."""
        self.web.holds.require_room(caller.get())

    async def fail(self, error: AgentdError) -> None:
        """Answer with the error; where the answer has begun, cut it off."""
        if self.started:
            await self.abort()
        else:
            await self.answer(self.door.error(error))

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        message = {"type": "http.response.start", "status": status, "headers": headers}
        await self._send(message)
        if self.head_only:
            await self.end()
            raise Answered

    async def write(self, data: bytes) -> None:
        """Waits until the client has taken most of it. Raises Disconnected."""
        if self.link.is_lost:
            raise Disconnected("the client went away amid the answer")
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def flush(self, seconds: float) -> None:
        """Wait until the kernel has what was written, the client is gone, or so long at most."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (
            self.link.transport.get_write_buffer_size()
            and not self.link.is_lost
            and loop.time() < end
        ):
            await asyncio.sleep(_FLUSH_LOOKS)

    async def abort(self) -> None:
        """Cut the connection; returns when it is."""
        gone = asyncio.Event()
        self.link.transport.abort()
        self.link.on_lost(gone.set)
        await gone.wait()


def _too_large(limit: int, fix: str) -> TooLarge:
    return TooLarge(f"the body is larger than {limit} bytes", remediation=fix)
