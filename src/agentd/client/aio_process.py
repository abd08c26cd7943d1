"""A running command for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TypeVar

from agentd.client import arguments
from agentd.client.aio_method import aio
from agentd.client.aio_thread import Threads, Wake
from agentd.client.chunk import Chunk
from agentd.client.cut import Cut
from agentd.client.process import Process, not_ended
from agentd.client.signature import documented_by
from agentd.client.wording import of_result
from agentd.model.errors import InvalidInput
from agentd.model.result import Result
from agentd.model.running import drive

_PIECE = 64 << 10
T = TypeVar("T")


@documented_by(Process)
class AsyncProcess:
    """A running command: ``async for`` its chunks, ``await wait()`` for its Result.

    One of ``stream`` begins when something is first asked of it, and is killed when its loop is
    left early, unless it is in an ``async with``. Cancelling a task that waits for a command kills
    it.
    """

    close_stdin = aio(Process.close_stdin)
    signal = aio(Process.signal)
    resize = aio(Process.resize)
    kill = aio(Process.kill)

    def __init__(
        self,
        threads: Threads,
        begin: Callable[[int], Process],
        stdin: bytes | None = None,
        *,
        for_one_loop: bool = False,
        begins: bool = True,
    ) -> None:
        """``begin`` gives up once the descriptor that it is given is readable; where nothing
        ``begins`` by it, it is cut off. ``stdin`` is all that the command gets; None: it is written
        to, or has none."""
        self._threads = threads
        self._begin = begin
        self._begins = begins
        self._stdin = stdin
        self._for_one_loop = for_one_loop
        self._beginning = asyncio.Lock()
        self._process: Process | None = None
        self._iterated: AsyncIterator[Chunk] | None = None
        self._wake = Wake()
        self._closed = False

    @property
    def id(self) -> str | None:
        return self._process.id if self._process else None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def cursors(self) -> dict[str, int]:
        return self._process.cursors if self._process else {}

    @property
    def result(self) -> Result:
        if self._process is None:
            raise not_ended()
        return self._process.result

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            process = await self._begun()
            if process._result is not None:
                return
            rounds = drive(process._running, lambda: (self._wake.fd,))
            for chunk in process._given():
                yield chunk
            while found := await self._guarded(partial(next, rounds, None)):
                process._unread.add(found[0])
                for chunk in process._given():
                    yield chunk
            for chunk in process._chunks.rest():
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
        await self._feed(await self._begun(), arguments.feed(data))

    async def wait(self) -> Result:
        process = await self._begun()
        while process._result is None:
            if process._running.exit is None:
                await self._guarded(partial(process._running.step, None, [self._wake.fd]))
            else:
                process._result = of_result(await self._guarded(process._running.finish))
        await self.close()
        return process._result

    async def detach(self) -> None:
        await self._threads.call((await self._begun()).detach)
        self._closed = True
        self._wake.close()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._process is not None:
                await self._threads.call(self._process.close, ends=True)
            self._wake.close()

    async def aclose(self) -> None:
        """Close it, for contextlib.aclosing."""
        await self.close()

    async def __aenter__(self) -> "AsyncProcess":
        self._for_one_loop = False
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _begun(self) -> Process:
        async with self._beginning:
            if self._process is None:
                if self._closed:
                    raise InvalidInput(
                        "the command was closed before it began", remediation="start another"
                    )
                process = await self._guarded(self._start, begins=self._begins)
                if self._stdin is not None:
                    await self._feed(process, self._stdin)
                    await self._guarded(process.close_stdin)
            return self._process  # type: ignore[return-value]  # _start has set it

    async def _feed(self, process: Process, data: bytes) -> None:
        for at in range(0, len(data), _PIECE):
            await self._guarded(partial(process.write, data[at : at + _PIECE]))

    def _start(self) -> Process:
        # Kept here, in the thread: a task that is cancelled meanwhile must find it, and end it.
        self._process = self._begin(self._wake.fd)
        return self._process

    async def _call(self, work: Callable[[Process], T]) -> T:
        return await self._guarded(partial(work, await self._begun()), ends=True)

    async def _guarded(
        self, call: Callable[[], T], *, ends: bool = False, begins: bool = False
    ) -> T:
        """On cancellation the thread is woken and done before the command is killed; it is cut off,
        too, from a daemon that has gone, but as it ``begins``: then it may have one to kill."""
        cut = None if begins else Cut()
        try:
            return await self._threads.call(call, self._wake, cut, ends=ends)
        except asyncio.CancelledError:
            await self.close()
            raise
