"""The SDK for asyncio: the same sandbox, its blocking calls on a few threads of its own."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from agentd.client import build
from agentd.client.build import Command, Time
from agentd.client.files import Files
from agentd.client.sandbox import Chunk, CommandFailed, Sandbox
from agentd.model.enforcement import Enforcement
from agentd.model.result import Result, SandboxInfo
from agentd.model.spec import ExecRequest, Pty

if TYPE_CHECKING:
    from agentd.client.embedded import Execution

# Commands and file operations of one sandbox at the same time; more of them wait their turn.
MAX_THREADS = 16
_PIECE = 64 << 10
_BACKLOG = 256 << 10
T = TypeVar("T")


class _Wake:
    """A pipe that ends a thread's poll when its task is cancelled."""

    def __init__(self) -> None:
        self.fd, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def set(self) -> None:
        os.write(self._write_end, b"c")

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._write_end)


class AsyncProcess:
    """A running command: ``async for`` its chunks, ``await wait()`` for its Result.

    Cancelling the task that waits for it kills the command.
    """

    def __init__(self, sandbox: "AsyncSandbox", execution: "Execution") -> None:
        self._sandbox = sandbox
        self._execution = execution
        self._wake = _Wake()
        self._closed = False
        self.result: Result | None = None

    @property
    def pid(self) -> int | None:
        return self._execution.running.pid

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while self.result is None:
            found = await self._guarded(self._step)
            for name, data in found:
                yield Chunk(name, data)
            if self._execution.exit is not None and not found:
                await self.wait()

    async def write(self, data: bytes | str) -> None:
        content = data.encode() if isinstance(data, str) else data
        for at in range(0, len(content), _PIECE):
            await self._guarded(partial(self._execution.write, content[at : at + _PIECE]))

    async def close_stdin(self) -> None:
        await self._guarded(self._execution.close_stdin)

    async def signal(self, number: int) -> None:
        await self._guarded(partial(self._execution.running.signal, number))

    async def resize(self, rows: int, cols: int) -> None:
        await self._guarded(partial(self._execution.running.resize, rows, cols))

    async def kill(self) -> None:
        await self._guarded(self._execution.kill)

    async def wait(self) -> Result:
        """Until it has ended; output that was not read is dropped."""
        while self.result is None:
            if self._execution.exit is None:
                await self._guarded(self._step)
            else:
                self.result = await self._guarded(self._execution.finish)
        await self.close()
        return self.result

    async def close(self) -> None:
        """Free it; a command that still runs is killed."""
        if not self._closed:
            self._closed = True
            await self._sandbox._call(self._execution.close)
            self._wake.close()

    async def __aenter__(self) -> "AsyncProcess":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _step(self) -> list[tuple[str, bytes]]:
        return self._execution.step(None, [self._wake.fd])[0]

    async def _guarded(self, call: Callable[[], T]) -> T:
        """On cancellation the thread is woken and done before the command is killed."""
        try:
            return await self._sandbox._call(call, self._wake)
        except asyncio.CancelledError:
            await self.close()
            raise


class AsyncFiles:
    """The methods of Files as coroutines; ``watch`` and ``read_iter`` are on the sync one only."""

    def __init__(self, sandbox: "AsyncSandbox", files: Files) -> None:
        self._sandbox = sandbox
        self._files = files

    async def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        return await self._sandbox._call(partial(self._files.read, path, offset, length))

    async def read_text(self, path: str, encoding: str = "utf-8") -> str:
        return await self._sandbox._call(partial(self._files.read_text, path, encoding))

    async def write(self, path: str, data: bytes | str, **options: Any) -> int:
        return await self._sandbox._call(partial(self._files.write, path, data, **options))

    async def list(self, path: str) -> Any:
        return await self._sandbox._call(partial(self._files.list, path))

    async def stat(self, path: str) -> Any:
        return await self._sandbox._call(partial(self._files.stat, path))

    async def mkdir(self, path: str, **options: Any) -> None:
        await self._sandbox._call(partial(self._files.mkdir, path, **options))

    async def move(self, path: str, to: str) -> None:
        await self._sandbox._call(partial(self._files.move, path, to))

    async def remove(self, path: str, **options: Any) -> None:
        await self._sandbox._call(partial(self._files.remove, path, **options))


class AsyncSandbox:
    """Made by ``await AsyncSandbox.create(...)``, with the arguments of ``Sandbox.create``."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=sandbox.id)

    @classmethod
    async def create(cls, **options: Any) -> "AsyncSandbox":
        future = asyncio.ensure_future(asyncio.to_thread(partial(Sandbox.create, **options)))
        try:
            return cls(await asyncio.shield(future))
        except asyncio.CancelledError:
            # It is being built already: let it come up, then end it.
            future.add_done_callback(_discard)
            raise

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
    def files(self) -> AsyncFiles:
        return AsyncFiles(self, self._sandbox.files)

    async def run(
        self,
        cmd: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        timeout: Time = None,
        check: bool = False,
    ) -> Result:
        """As Sandbox.run; cancelling it kills the command."""
        request = build.exec_request(
            cmd, cwd=cwd, env=env, stdin=stdin is not None, timeout=timeout
        )
        data = stdin.encode() if isinstance(stdin, str) else stdin or b""
        wake = _Wake()
        try:
            result = await self._call(partial(self._drive, request, data, wake.fd), wake)
        finally:
            wake.close()
        if check and result.status != "ok":
            raise CommandFailed(result)
        return result

    async def start(
        self,
        cmd: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bool = False,
        pty: Pty | tuple[int, int] | None = None,
        timeout: Time = None,
    ) -> AsyncProcess:
        terminal = Pty(*pty) if isinstance(pty, tuple) else pty
        request = build.exec_request(
            cmd, cwd=cwd, env=env, stdin=stdin, pty=terminal, timeout=timeout
        )
        return AsyncProcess(self, await self._call(partial(self._sandbox._begin, request)))

    async def stream(self, cmd: Command, **options: Any) -> AsyncIterator[Chunk]:
        """Its output as it comes; leaving the loop early kills the command."""
        async with await self.start(cmd, **options) as process:
            async for chunk in process:
                yield chunk

    async def changes(self) -> tuple[str, ...]:
        return await self._call(self._sandbox.changes)

    async def apply(self) -> None:
        await self._call(self._sandbox.apply)

    async def ping(self) -> dict[str, object]:
        return await self._call(self._sandbox.ping)

    async def close(self) -> None:
        """End everything in it; idempotent."""
        # Not on our own threads: its commands may hold them all.
        await asyncio.to_thread(self._sandbox.close)
        await asyncio.to_thread(self._pool.shutdown)

    async def kill(self) -> None:
        await self.close()

    async def __aenter__(self) -> "AsyncSandbox":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _drive(self, request: ExecRequest, stdin: bytes, wake: int) -> Result:
        """A whole captured command on a thread; ``wake`` readable kills it."""
        left = memoryview(stdin)
        with self._sandbox._begin(request, capture=True) as execution:
            feeding = request.stdin
            while execution.exit is None:
                if feeding and execution.running.backlog < _BACKLOG:
                    execution.write(bytes(left[:_PIECE]))
                    left = left[_PIECE:]
                    if not left:
                        execution.close_stdin()
                        feeding = False
                    continue
                if execution.step(None, [wake])[1]:
                    execution.kill()
                    break
            return execution.finish()

    async def _call(self, call: Callable[[], T], wake: _Wake | None = None) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._pool, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if wake is not None:
                wake.set()
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # retrieved: the cancellation is what counts
            raise


def _discard(future: "asyncio.Future[Sandbox]") -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
