"""The SDK for asyncio: the same sandbox, its blocking calls on a few threads of its own."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, Unpack

from agentd.client import build
from agentd.client.aio_thread import Wake, Work
from agentd.client.build import Command, ExecOptions, SandboxOptions
from agentd.client.chunk import Chunk, Chunks
from agentd.client.files import Files
from agentd.client.sandbox import CommandFailed, Process, Sandbox
from agentd.client.signature import documented_by, options_shown
from agentd.model.enforcement import Enforcement
from agentd.model.result import Result, SandboxInfo
from agentd.model.spec import Pty

if TYPE_CHECKING:
    from agentd.client.ports import Running, Snapshot
    from agentd.model.api import CallView
    from agentd.transport.files import Change, Entry

# Commands and file operations of one sandbox at the same time; more of them wait their turn.
MAX_THREADS = 16
_PIECE = 64 << 10
T = TypeVar("T")


@documented_by(Process)
class AsyncProcess:
    """A running command: ``async for`` its chunks, ``await wait()`` for its Result.

    Cancelling the task that waits for it kills the command.
    """

    def __init__(self, sandbox: "AsyncSandbox", running: "Running") -> None:
        self._sandbox = sandbox
        self._running = running
        self._chunks = Chunks()
        self._wake = Wake()
        self._closed = False
        self.result: Result | None = None

    @property
    def id(self) -> str | None:
        return self._running.id

    @property
    def pid(self) -> int | None:
        return self._running.pid

    @property
    def cursors(self) -> dict[str, int]:
        return dict(self._running.cursors)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while self.result is None:
            found = await self._guarded(self._step)
            for name, data in found:
                yield self._chunks.make(name, data, self._running.before)
            if self._running.exit is not None and not found:
                for chunk in self._chunks.rest():
                    yield chunk
                await self.wait()

    async def write(self, data: bytes | str) -> None:
        content = data.encode() if isinstance(data, str) else data
        for at in range(0, len(content), _PIECE):
            await self._guarded(partial(self._running.write, content[at : at + _PIECE]))

    async def close_stdin(self) -> None:
        await self._guarded(self._running.close_stdin)

    async def signal(self, number: int) -> None:
        await self._guarded(partial(self._running.signal, number))

    async def resize(self, rows: int, cols: int) -> None:
        await self._guarded(partial(self._running.resize, rows, cols))

    async def kill(self) -> None:
        await self._guarded(self._running.kill)

    async def wait(self) -> Result:
        """Until it has ended; output that was not read is dropped."""
        while self.result is None:
            if self._running.exit is None:
                await self._guarded(self._step)
            else:
                self.result = await self._guarded(self._running.finish)
        await self.close()
        return self.result

    async def close(self) -> None:
        """Free it; a command that still runs is killed."""
        if not self._closed:
            self._closed = True
            await self._sandbox._call(self._running.close)
            self._wake.close()

    async def detach(self) -> None:
        """Let go of it: in a daemon's sandbox it goes on, and can be attached to."""
        await self._sandbox._call(self._running.detach)
        self._closed = True
        self._wake.close()

    async def __aenter__(self) -> "AsyncProcess":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _step(self) -> list[tuple[str, bytes]]:
        return self._running.step(None, [self._wake.fd])[0]

    async def _guarded(self, call: Callable[[], T]) -> T:
        """On cancellation the thread is woken and done before the command is killed."""
        try:
            return await self._sandbox._call(call, self._wake)
        except asyncio.CancelledError:
            await self.close()
            raise


@documented_by(Files)
class AsyncFiles:
    """The methods of Files as coroutines; ``read_iter`` and ``watch`` for ``async for``."""

    def __init__(self, sandbox: "AsyncSandbox", files: Files) -> None:
        self._sandbox = sandbox
        self._files = files

    async def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        return await self._sandbox._call(partial(self._files.read, path, offset, length))

    async def read_text(self, path: str, encoding: str = "utf-8") -> str:
        return await self._sandbox._call(partial(self._files.read_text, path, encoding))

    def read_iter(self, path: str) -> AsyncIterator[bytes]:
        return self._each(partial(self._files._files.read_iter, path))

    def watch(self, path: str, *, recursive: bool = False) -> "AsyncIterator[Change]":
        """As Files.watch; it holds one of the threads."""
        return self._each(partial(self._files._files.watch, path, recursive=recursive))

    async def write(
        self,
        path: str,
        data: bytes | str | Iterable[bytes] | BinaryIO,
        *,
        mode: int = 0o644,
        parents: bool = False,
    ) -> int:
        work = partial(self._files.write, path, data, mode=mode, parents=parents)
        return await self._sandbox._call(work)

    async def upload(
        self, host_path: str | os.PathLike[str], path: str, *, replace: bool = False
    ) -> int:
        work = partial(self._files.upload, host_path, path, replace=replace)
        return await self._sandbox._call(work)

    async def download(
        self, path: str, host_path: str | os.PathLike[str], *, replace: bool = False
    ) -> int:
        work = partial(self._files.download, path, host_path, replace=replace)
        return await self._sandbox._call(work)

    async def list(self, path: str) -> "list[Entry]":
        return await self._sandbox._call(partial(self._files.list, path))

    async def stat(self, path: str) -> "Entry":
        return await self._sandbox._call(partial(self._files.stat, path))

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = False) -> None:
        await self._sandbox._call(partial(self._files.mkdir, path, mode=mode, parents=parents))

    async def move(self, path: str, to: str) -> None:
        await self._sandbox._call(partial(self._files.move, path, to))

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        await self._sandbox._call(partial(self._files.remove, path, recursive=recursive))

    async def _each(self, begin: Callable[..., Iterator[T]]) -> AsyncIterator[T]:
        """Its items, each waited for on a thread; cancelling the wait ends it."""
        wake = Wake()
        items = begin(wake=wake.fd)
        try:
            while (item := await self._sandbox._call(partial(next, items, None), wake)) is not None:
                yield item
        finally:
            items.close()  # type: ignore[attr-defined]  # a generator
            wake.close()


@documented_by(Sandbox)
class AsyncSandbox:
    """Made by ``await AsyncSandbox.create(...)``, with the arguments of ``Sandbox.create``."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=sandbox.id)

    @classmethod
    @options_shown
    async def create(
        cls,
        *,
        url: str | None = None,
        api_key: str | None = None,
        snapshot: "Snapshot | str | os.PathLike[str] | None" = None,
        labels: Mapping[str, str] | None = None,
        ttl: str | float | None = None,
        **options: Unpack[SandboxOptions],
    ) -> "AsyncSandbox":
        create = partial(Sandbox.create, url=url, api_key=api_key, snapshot=snapshot, **options)
        return cls(*await _made(lambda: [create(labels=labels, ttl=ttl)]))

    @classmethod
    async def connect(
        cls, id: str, *, url: str | None = None, api_key: str | None = None
    ) -> "AsyncSandbox":
        """As Sandbox.connect: to close it lets go of it, ``kill`` ends it."""
        return cls(await asyncio.to_thread(partial(Sandbox.connect, id, url=url, api_key=api_key)))

    @property
    def id(self) -> str:
        return self._sandbox.id

    @property
    def info(self) -> SandboxInfo:
        return self._sandbox.info

    @property
    def enforcement(self) -> Enforcement:
        return self._sandbox.enforcement

    @property
    def labels(self) -> Mapping[str, str]:
        return self._sandbox.labels

    @property
    def files(self) -> AsyncFiles:
        return AsyncFiles(self, self._sandbox.files)

    @options_shown
    async def run(
        self,
        cmd: Command,
        *,
        stdin: bytes | str | None = None,
        check: bool = False,
        **options: Unpack[ExecOptions],
    ) -> Result:
        """As Sandbox.run; cancelling it kills the command."""
        request = build.exec_request(cmd, **options)
        data = stdin.encode() if isinstance(stdin, str) else stdin or b""
        wake = Wake()
        try:
            execute = partial(self._sandbox._held.execute, request, data, wake.fd)
            result = await self._call(execute, wake)
        finally:
            wake.close()
        if check and result.status != "ok":
            raise CommandFailed(result)
        return result

    @options_shown
    async def start(
        self,
        cmd: Command,
        *,
        stdin: bool = False,
        pty: Pty | tuple[int, int] | None = None,
        **options: Unpack[ExecOptions],
    ) -> AsyncProcess:
        terminal = Pty(*pty) if isinstance(pty, tuple) else pty
        request = build.exec_request(cmd, stdin=stdin, pty=terminal, **options)
        return AsyncProcess(self, await self._call(partial(self._sandbox._begin, request)))

    async def attach(self, process: str, cursors: Mapping[str, int] | None = None) -> AsyncProcess:
        """As Sandbox.attach."""
        found = await self._call(partial(self._sandbox._held.attach, process, cursors or {}))
        return AsyncProcess(self, found)

    @options_shown
    async def stream(self, cmd: Command, **options: Unpack[ExecOptions]) -> AsyncIterator[Chunk]:
        """Its output as it comes; leaving the loop early kills the command."""
        async with await self.start(cmd, **options) as process:
            async for chunk in process:
                yield chunk

    async def call(
        self,
        capability: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        emit: Callable[[str, bytes], None] | None = None,
        bundle: str = "",
        **more: Any,
    ) -> "CallView":
        """As Sandbox.call; cancelling it ends the call. ``emit`` is called on another thread."""
        given = {**(parameters or {}), **more}
        wake = Wake()
        try:
            held = self._sandbox._held
            return await self._call(
                partial(held.call, capability, given, emit, bundle, wake.fd), wake
            )
        finally:
            wake.close()

    async def changes(self) -> tuple[str, ...]:
        return await self._call(self._sandbox.changes)

    async def apply(self) -> None:
        await self._call(self._sandbox.apply)

    async def pause(self) -> None:
        await self._call(self._sandbox.pause)

    async def resume(self) -> None:
        await self._call(self._sandbox.resume)

    async def snapshot(self, path: str | os.PathLike[str] | None = None) -> "Snapshot":
        return await self._call(partial(self._sandbox.snapshot, path))

    async def fork(self, count: int = 1) -> "list[AsyncSandbox]":
        made = await _made(partial(self._sandbox.fork, count))
        return [type(self)(sandbox) for sandbox in made]

    async def ping(self) -> dict[str, object]:
        return await self._call(self._sandbox.ping)

    async def renew(self, ttl: str | float) -> None:
        await self._call(partial(self._sandbox.renew, ttl))

    async def close(self) -> None:
        """End everything in it, or let go of it if it was ``connect``ed to; idempotent."""
        await self._end(self._sandbox.close)

    async def kill(self) -> None:
        """End everything in it; idempotent."""
        await self._end(self._sandbox.kill)

    async def _end(self, end: Callable[[], None]) -> None:
        # Not on our own threads: its commands may hold them all.
        await asyncio.to_thread(end)
        await asyncio.to_thread(self._pool.shutdown)

    async def __aenter__(self) -> "AsyncSandbox":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _call(self, call: Callable[[], T], wake: Wake | None = None) -> T:
        work = Work(call)
        self._pool.submit(work.run)
        try:
            return await work.future
        except asyncio.CancelledError:
            if wake is not None:
                wake.set()
            await work.wait_ended()  # the cancellation is what counts, not what came of it
            raise


async def _made(make: Callable[[], list[Sandbox]]) -> list[Sandbox]:
    """What ``make`` makes on a thread. Cancelled, it still comes up, and is then ended."""
    future = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_discard)
        raise


def _discard(future: "asyncio.Future[list[Sandbox]]") -> None:
    if not future.cancelled() and future.exception() is None:
        for sandbox in future.result():
            sandbox.close()
