"""Files of a sandbox for asyncio."""

from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from agentd.client.aio_method import AioOnThreads, aio
from agentd.client.aio_thread import Wake
from agentd.client.files import Files, InsidePath
from agentd.client.signature import documented_by

if TYPE_CHECKING:
    from agentd.transport.files import Change

T = TypeVar("T")


@documented_by(Files)
class AsyncFiles(AioOnThreads[Files]):
    """The methods of Files as coroutines; ``read_iter`` and ``watch`` for ``async for``."""

    read = aio(Files.read)
    read_text = aio(Files.read_text)
    write = aio(Files.write)
    upload = aio(Files.upload)
    download = aio(Files.download)
    list = aio(Files.list)
    stat = aio(Files.stat)
    mkdir = aio(Files.mkdir)
    exists = aio(Files.exists)
    move = aio(Files.move)
    remove = aio(Files.remove)

    def read_iter(self, path: InsidePath) -> AsyncGenerator[bytes, None]:
        return self._each(partial(self._blocking._read_iter, path))

    def watch(self, path: InsidePath, *, recursive: bool = False) -> "AsyncGenerator[Change, None]":
        """As Files.watch; it holds one of the threads."""
        return self._each(partial(self._blocking._watch, path, recursive))

    async def _each(
        self, begin: Callable[[int], Generator[T, None, None]]
    ) -> AsyncGenerator[T, None]:
        """Yield its items, each waited for on a thread; cancelling the wait ends it."""
        wake = Wake()
        items = begin(wake.fd)
        try:
            while (item := await self._threads.call(partial(next, items, None), wake)) is not None:
                yield item
        finally:
            items.close()
            wake.close()
