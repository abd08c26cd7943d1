"""Files of a sandbox for asyncio."""

import os
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from agentd.client import arguments
from agentd.client.aio_thread import Threads, Wake
from agentd.client.files import Files, InsidePath
from agentd.client.signature import documented_by

if TYPE_CHECKING:
    from agentd.transport.files import Change, Entry

T = TypeVar("T")


@documented_by(Files)
class AsyncFiles:
    """The methods of Files as coroutines; ``read_iter`` and ``watch`` for ``async for``."""

    def __init__(self, threads: Threads, files: Files) -> None:
        self._threads = threads
        self._files = files

    async def read(self, path: InsidePath, offset: int = 0, length: int | None = None) -> bytes:
        return await self._threads.call(partial(self._files.read, path, offset, length))

    async def read_text(self, path: InsidePath, encoding: str = "utf-8") -> str:
        return await self._threads.call(partial(self._files.read_text, path, encoding))

    def read_iter(self, path: InsidePath) -> AsyncGenerator[bytes, None]:
        return self._each(partial(self._files._files.read_iter, arguments.path(path)))

    def watch(self, path: InsidePath, *, recursive: bool = False) -> "AsyncGenerator[Change, None]":
        """As Files.watch; it holds one of the threads."""
        return self._each(
            partial(self._files._files.watch, arguments.path(path), recursive=recursive)
        )

    async def write(
        self,
        path: InsidePath,
        data: bytes | str | Iterable[bytes] | BinaryIO,
        *,
        mode: int = 0o644,
        parents: bool = False,
    ) -> int:
        work = partial(self._files.write, path, data, mode=mode, parents=parents)
        return await self._threads.call(work)

    async def upload(
        self, host_path: str | os.PathLike[str], path: InsidePath, *, replace: bool = False
    ) -> int:
        work = partial(self._files.upload, host_path, path, replace=replace)
        return await self._threads.call(work)

    async def download(
        self, path: InsidePath, host_path: str | os.PathLike[str], *, replace: bool = False
    ) -> int:
        work = partial(self._files.download, path, host_path, replace=replace)
        return await self._threads.call(work)

    async def list(self, path: InsidePath) -> "list[Entry]":
        return await self._threads.call(partial(self._files.list, path))

    async def stat(self, path: InsidePath) -> "Entry":
        return await self._threads.call(partial(self._files.stat, path))

    async def mkdir(self, path: InsidePath, *, mode: int = 0o755, parents: bool = False) -> None:
        await self._threads.call(partial(self._files.mkdir, path, mode=mode, parents=parents))

    async def exists(self, path: InsidePath) -> bool:
        return await self._threads.call(partial(self._files.exists, path))

    async def move(self, path: InsidePath, to: InsidePath) -> None:
        await self._threads.call(partial(self._files.move, path, to))

    async def remove(self, path: InsidePath, *, recursive: bool = False) -> None:
        await self._threads.call(partial(self._files.remove, path, recursive=recursive))

    async def _each(self, begin: Callable[..., Iterator[T]]) -> AsyncGenerator[T, None]:
        """Its items, each waited for on a thread; cancelling the wait ends it."""
        wake = Wake()
        items = begin(wake=wake.fd)
        try:
            while (item := await self._threads.call(partial(next, items, None), wake)) is not None:
                yield item
        finally:
            items.close()  # type: ignore[attr-defined]  # a generator
            wake.close()
