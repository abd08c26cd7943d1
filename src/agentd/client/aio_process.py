"""A running command for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from agentd.client import arguments
from agentd.client.aio_thread import Threads, Wake
from agentd.client.chunk import Chunk, Chunks
from agentd.client.process import Process, Unread, ended
from agentd.client.signature import documented_by
from agentd.client.wording import of_result
from agentd.model.drive import drive
from agentd.model.errors import InvalidInput
from agentd.model.result import Result

if TYPE_CHECKING:
    from agentd.client.ports import Running

_PIECE = 64 << 10
T = TypeVar("T")


@documented_by(Process)
class AsyncProcess:
    """A running command: ``async for`` its chunks, ``await wait()`` for its Result.

    One of ``stream`` begins when something is first asked of it, and is killed when its loop is
    left early, unless it is in an ``async with``. Cancelling a task that waits for a command kills
    it.
    """

    def __init__(
        self,
        threads: Threads,
        begin: "Callable[[], Running]",
        stdin: bytes | None = None,
        *,
        for_one_loop: bool = False,
    ) -> None:
        """``stdin`` is all that it gets; None: it is written to, or has none."""
        self._threads = threads
        self._begin = begin
        self._stdin = stdin
        self._for_one_loop = for_one_loop
        self._beginning = asyncio.Lock()
        self._running: Running | None = None
        self._chunks = Chunks()
        self._unread = Unread()
        self._iterated: AsyncIterator[Chunk] | None = None
        self._wake = Wake()
        self._closed = False
        self._result: Result | None = None

    @property
    def id(self) -> str | None:
        return self._running.id if self._running else None

    @property
    def pid(self) -> int | None:
        return self._running.pid if self._running else None

    @property
    def cursors(self) -> dict[str, int]:
        return self._unread.cursors(self._running.cursors) if self._running else {}

    @property
    def result(self) -> Result:
        return ended(self._result)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            if self._result is not None:
                return
            running = await self._begun()
            rounds = drive(running, lambda: (self._wake.fd,))
            for name, data in self._unread.taken():
                yield self._chunks.make(name, data, running.before)
            while found := await self._guarded(partial(next, rounds, None)):
                self._unread.add(found[0])
                for name, data in self._unread.taken():
                    yield self._chunks.make(name, data, running.before)
            for chunk in self._chunks.rest():
                yield chunk
            await self.wait()
        finally:
            if self._for_one_loop:
                await self.close()

    async def __anext__(self) -> Chunk:
        if self._iterated is None:
            self._iterated = aiter(self)
        return await anext(self._iterated)

    async def write(self, data: bytes | str) -> None:
        content = arguments.feed(data)
        running = await self._begun()
        for at in range(0, len(content), _PIECE):
            await self._guarded(partial(running.write, content[at : at + _PIECE]))

    async def close_stdin(self) -> None:
        await self._guarded((await self._begun()).close_stdin)

    async def signal(self, number: int) -> None:
        await self._guarded(partial((await self._begun()).signal, number))

    async def resize(self, rows: int, cols: int) -> None:
        await self._guarded(partial((await self._begun()).resize, rows, cols))

    async def kill(self) -> None:
        await self._guarded((await self._begun()).kill)

    async def wait(self) -> Result:
        running = await self._begun()
        while self._result is None:
            if running.exit is None:
                await self._guarded(self._step)
            else:
                self._result = of_result(await self._guarded(running.finish))
        await self.close()
        return self._result

    async def detach(self) -> None:
        await self._threads.call((await self._begun()).detach)
        self._closed = True
        self._wake.close()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._running is not None:
                await self._threads.call(self._running.close)
            self._wake.close()

    async def aclose(self) -> None:
        """As ``close``, for contextlib.aclosing."""
        await self.close()

    async def __aenter__(self) -> "AsyncProcess":
        self._for_one_loop = False
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _begun(self) -> "Running":
        async with self._beginning:
            if self._running is None:
                if self._closed:
                    raise InvalidInput(
                        "the command was closed before it began", remediation="start another"
                    )
                await self._guarded(self._start)
                await self._feed()
        assert self._running is not None  # noqa: S101  for the type checker
        return self._running

    async def _feed(self) -> None:
        if self._stdin is not None and self._running is not None:
            for at in range(0, len(self._stdin), _PIECE):
                piece = self._stdin[at : at + _PIECE]
                await self._guarded(partial(self._running.write, piece))
            await self._guarded(self._running.close_stdin)

    def _start(self) -> None:
        # Kept here, in the thread: a task that is cancelled meanwhile must find it, and end it.
        self._running = self._begin()

    def _step(self) -> list[tuple[str, bytes]]:
        return [] if self._running is None else self._running.step(None, [self._wake.fd])[0]

    async def _guarded(self, call: Callable[[], T]) -> T:
        """On cancellation the thread is woken and done before the command is killed."""
        try:
            return await self._threads.call(call, self._wake)
        except asyncio.CancelledError:
            await self.close()
            raise
