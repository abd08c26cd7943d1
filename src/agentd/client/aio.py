"""The SDK for asyncio: the same sandbox, its blocking calls on a few threads of its own."""

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from agentd.client import arguments, build, wording
from agentd.client.aio_files import AsyncFiles
from agentd.client.aio_process import AsyncProcess
from agentd.client.aio_thread import Threads, Wake
from agentd.client.build import Command, ExecOptions, SandboxOptions
from agentd.client.code import PYTHON, CodeResult, code_parameters, code_result
from agentd.client.sandbox import CommandFailed, Sandbox
from agentd.client.signature import documented_by, options_shown
from agentd.model.enforcement import Enforcement
from agentd.model.options import Time
from agentd.model.result import Result, SandboxInfo
from agentd.model.spec import Pty

if TYPE_CHECKING:
    from agentd.client.ports import Running, Snapshot
    from agentd.model.api import CallView


@documented_by(Sandbox)
class AsyncSandbox:
    """Made by ``await AsyncSandbox.create(...)``, with the arguments of ``Sandbox.create``."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._threads = Threads(sandbox.id)

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
        embedded: bool = False,
        **options: Unpack[SandboxOptions],
    ) -> "AsyncSandbox":
        create = partial(Sandbox.create, url=url, api_key=api_key, snapshot=snapshot, **options)
        return cls(*await _made(lambda: [create(labels=labels, ttl=ttl, embedded=embedded)]))

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
    def url(self) -> str | None:
        return self._sandbox.url

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
        return AsyncFiles(self._threads, self._sandbox.files)

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
        data = arguments.stdin(stdin) or b""
        wake = Wake()
        try:
            execute = partial(self._sandbox._held.execute, request, data, wake.fd)
            with wording.spoken():
                result = wording.of_result(await self._threads.call(execute, wake))
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
        arguments.open_stdin(stdin)
        terminal = build.terminal(pty)
        request = build.exec_request(cmd, stdin=stdin, pty=terminal, **options)
        return await self._process(partial(self._sandbox._begin, request))

    async def attach(self, process: str, cursors: Mapping[str, int] | None = None) -> AsyncProcess:
        taken = arguments.attached(process, cursors)
        return await self._process(partial(self._sandbox._held.attach, *taken))

    @options_shown
    def stream(
        self, cmd: Command, *, stdin: bytes | str | None = None, **options: Unpack[ExecOptions]
    ) -> AsyncProcess:
        """As Sandbox.stream: ``async for`` its chunks, then ask for ``result``.

        It begins with the loop; leaving that early kills it.
        """
        request = build.exec_request(cmd, stdin=stdin is not None, **options)
        data = arguments.stdin(stdin)
        begin = partial(self._sandbox._begin, request)
        return AsyncProcess(self._threads, begin, data, for_one_loop=True)

    async def run_code(
        self,
        code: str,
        *,
        context: str = "default",
        timeout: Time = None,
        reset: bool = False,
        emit: Callable[[str, bytes], None] | None = None,
    ) -> CodeResult:
        """As Sandbox.run_code; cancelling it ends the code. ``emit`` runs on another thread."""
        asked = code_parameters(code, context, timeout, reset=reset)
        return code_result(await self.call(PYTHON, asked, emit=emit))

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
        given = {**arguments.called(capability, parameters, bundle), **more}
        wake = Wake()
        try:
            held = self._sandbox._held
            work = partial(held.call, capability, given, emit, bundle, wake.fd)
            with wording.spoken():
                return wording.of_call(await self._threads.call(work, wake))
        finally:
            wake.close()

    async def changes(self) -> tuple[str, ...]:
        return await self._threads.call(self._sandbox.changes)

    async def apply(self) -> None:
        await self._threads.call(self._sandbox.apply)

    async def pause(self) -> None:
        await self._threads.call(self._sandbox.pause)

    async def resume(self) -> None:
        await self._threads.call(self._sandbox.resume)

    async def snapshot(self, path: str | os.PathLike[str] | None = None) -> "Snapshot":
        return await self._threads.call(partial(self._sandbox.snapshot, path))

    async def fork(self, count: int = 1) -> "list[AsyncSandbox]":
        made = await _made(partial(self._sandbox.fork, count))
        return [type(self)(sandbox) for sandbox in made]

    async def ping(self) -> dict[str, object]:
        return await self._threads.call(self._sandbox.ping)

    async def renew(self, ttl: str | float) -> None:
        await self._threads.call(partial(self._sandbox.renew, ttl))

    async def close(self) -> None:
        """End everything in it, or let go of it if it was ``connect``ed to; idempotent."""
        await self._end(self._sandbox.close)

    async def kill(self) -> None:
        """End everything in it; idempotent."""
        await self._end(self._sandbox.kill)

    async def _end(self, end: Callable[[], None]) -> None:
        # Not on our own threads: its commands may hold them all.
        await asyncio.to_thread(end)
        await asyncio.to_thread(self._threads.shutdown)

    async def _process(self, begin: "Callable[[], Running]") -> AsyncProcess:
        process = AsyncProcess(self._threads, begin)
        try:
            await process._begun()
        except BaseException:
            await process.close()
            raise
        return process

    async def __aenter__(self) -> "AsyncSandbox":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


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
