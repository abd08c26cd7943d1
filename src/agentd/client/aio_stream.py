"""What is read as it comes, for asyncio: a connection to a port, a follower of output."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from agentd.client.aio_method import AioOnThreads, aio
from agentd.client.aio_thread import Threads
from agentd.model.errors import BackendLost
from agentd.model.output import Output, OutputEvent
from agentd.model.port import Port

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
_MAX_PAUSE = 0.05  # seconds between two attempts to send where nothing is taken


class AsyncPort(AioOnThreads[Port]):
    """Is a Port for the tasks of one loop: waiting for it holds up none of them, and no thread."""

    def __init__(self, threads: Threads, blocking: Port) -> None:
        super().__init__(threads, blocking)
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False

    async def recv(self, timeout: float | None = None) -> bytes:
        """Return the next bytes; b"" at the end. Raises TimeoutError, and BackendLost where it is
        closed meanwhile."""
        async with asyncio.timeout(timeout):
            while True:
                self._check()
                if not self._blocking.pending():
                    await self._readable()
                try:
                    return self._blocking.recv(0)
                except TimeoutError:  # what was there was no bytes
                    await asyncio.sleep(0)
                finally:
                    self._wake()  # there may be room, which the descriptor tells no more

    async def send(self, data: bytes) -> None:
        """Send all of it. Raises BackendLost where the other end takes no more."""
        rest, pause = memoryview(data), 0.0
        while rest:
            self._check()
            sent = self._blocking.send_some(bytes(rest[: 1 << 20]))
            rest = rest[sent:]
            if self._blocking.pending():
                self._wake()  # it read what another waits for, and the descriptor tells no more
            if sent:
                pause = 0.0
            elif rest:
                await self._readable()
                # what came and nobody reads leaves it readable: without a pause that is a spin
                await asyncio.sleep(pause)
                pause = min(2 * pause + 0.001, _MAX_PAUSE)

    async def half_close(self) -> None:
        """Send no more; what comes can still be received."""
        self._check()
        self._blocking.half_close()

    async def close(self) -> None:
        """Close it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        await self._call(lambda port: port.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _check(self) -> None:
        if self._closed:
            raise BackendLost("the connection is closed")

    async def _readable(self) -> None:
        """Wait until the descriptor is."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[None] = loop.create_future()
        if not self._waiting:
            loop.add_reader(self._blocking.fileno(), self._wake)
        self._waiting.add(told)
        try:
            await told
        finally:
            self._waiting.discard(told)
            if not self._waiting and not told.done():
                loop.remove_reader(self._blocking.fileno())

    def _wake(self) -> None:
        if not self._waiting:
            return
        asyncio.get_running_loop().remove_reader(self._blocking.fileno())
        waiting, self._waiting = self._waiting, set()
        for told in waiting:
            if not told.done():
                told.set_result(None)


class AsyncOutput(AioOnThreads[Output]):
    """Is a follower of a command's output for asyncio."""

    async def read(self, limit: int) -> Sequence[OutputEvent]:
        """Return what is there now, about ``limit`` bytes at most, without waiting for more. After
        the end: an event of the kind "exit", then nothing."""
        return self._blocking.read(limit)

    close = aio(Output.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def aio_as(
    kind: Callable[[Threads, R], S], method: Callable[Concatenate[Any, P], R]
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, S]]:
    """Make a coroutine of ``method``, as ``aio`` does, whose answer is of ``kind``."""
    ask = aio(method)

    async def awaited(self: AioOnThreads[Any], /, *args: P.args, **kwargs: P.kwargs) -> S:
        return kind(self._threads, await ask(self, *args, **kwargs))

    return update_wrapper(awaited, method)
