"""The SDK for asyncio: the same sandbox, its blocking calls on a few threads of its own."""

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Concatenate, ParamSpec, Unpack

from agentd.client import arguments, build
from agentd.client.aio_files import AsyncFiles
from agentd.client.aio_method import AioOnThreads, aio, cancellable
from agentd.client.aio_ports import AsyncNetworkControl, AsyncSandboxPorts
from agentd.client.aio_process import AsyncProcess
from agentd.client.aio_snapshot import taken
from agentd.client.aio_thread import Threads, Work
from agentd.client.build import Command, ExecOptions
from agentd.client.process import Process
from agentd.client.sandbox import Sandbox
from agentd.client.signature import documented_by, options_shown
from agentd.model.enforcement import Enforcement
from agentd.model.errors import AgentdError
from agentd.model.result import SandboxInfo

P = ParamSpec("P")


def _made(
    make: Callable[P, Sandbox],
) -> Callable[Concatenate["type[AsyncSandbox]", P], Coroutine[Any, Any, "AsyncSandbox"]]:
    async def made(
        cls: "type[AsyncSandbox]", /, *args: P.args, **kwargs: P.kwargs
    ) -> "AsyncSandbox":
        return cls((await _all_or_none(lambda: [make(*args, **kwargs)]))[0])

    functools.update_wrapper(made, getattr(make, "__func__", make))
    return made


def _begun(
    begin: Callable[Concatenate[Sandbox, P], Process],
    work: Callable[Concatenate[Sandbox, int, P], Process],
    *,
    begins: bool = True,
) -> Callable[Concatenate["AsyncSandbox", P], Coroutine[Any, Any, AsyncProcess]]:
    """Make a coroutine of ``begin`` by ``work``, as ``cancellable`` does; not ``begins``: what it
    is of runs already."""

    async def begun(self: "AsyncSandbox", /, *args: P.args, **kwargs: P.kwargs) -> AsyncProcess:
        def start(cancel: int) -> Process:
            return work(self._blocking, cancel, *args, **kwargs)

        process = AsyncProcess(self._threads, start, begins=begins)
        try:
            await process._begun()
        except BaseException:
            await process.close()
            raise
        return process

    return functools.update_wrapper(begun, begin)


@documented_by(Sandbox)
class AsyncSandbox(AioOnThreads[Sandbox]):
    """Is a Sandbox for asyncio: ``await AsyncSandbox.create(...)`` takes what that takes.

    Cancelling ``run``, ``run_code`` or ``call`` ends what they have begun. ``emit`` is called on
    another thread.
    """

    create = classmethod(_made(Sandbox.create))
    connect = classmethod(_made(Sandbox.connect))
    get_or_create = classmethod(_made(Sandbox.get_or_create))
    run = cancellable(Sandbox.run, Sandbox._run)
    run_code = cancellable(Sandbox.run_code, Sandbox._run_code, cuts=True)
    call = cancellable(Sandbox.call, Sandbox._call, cuts=True)
    start = _begun(Sandbox.start, Sandbox._start)
    attach = _begun(Sandbox.attach, Sandbox._attach, begins=False)
    changes = aio(Sandbox.changes)
    apply = aio(Sandbox.apply)
    pause = aio(Sandbox.pause)
    resume = aio(Sandbox.resume)
    snapshot = taken(Sandbox.snapshot)
    commit = aio(Sandbox.commit)
    ping = aio(Sandbox.ping)
    renew = aio(Sandbox.renew)

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(Threads(sandbox.id), sandbox)

    @property
    def id(self) -> str:
        return self._blocking.id

    @property
    def name(self) -> str | None:
        return self._blocking.name

    @property
    def url(self) -> str | None:
        return self._blocking.url

    @property
    def info(self) -> SandboxInfo:
        return self._blocking.info

    @property
    def enforcement(self) -> Enforcement:
        return self._blocking.enforcement

    @property
    def fidelity(self) -> str:
        return self._blocking.fidelity

    @property
    def command(self) -> tuple[str, ...]:
        return self._blocking.command

    @property
    def labels(self) -> Mapping[str, str]:
        return self._blocking.labels

    @property
    def files(self) -> AsyncFiles:
        return AsyncFiles(self._threads, self._blocking.files)

    @property
    def ports(self) -> "AsyncSandboxPorts":
        return AsyncSandboxPorts(self._threads, self._blocking.ports)

    @property
    def network(self) -> "AsyncNetworkControl":
        return AsyncNetworkControl(self._threads, self._blocking.network)

    @options_shown
    def stream(
        self, cmd: Command, *, stdin: bytes | str | None = None, **options: Unpack[ExecOptions]
    ) -> AsyncProcess:
        """Begin a command as Sandbox.stream: ``async for`` its chunks, then ask for ``result``.

        It begins with the loop; leaving that early kills it.
        """
        request = build.exec_request(cmd, stdin=stdin is not None, **options)
        data = arguments.stdin(stdin)
        begin = partial(self._blocking._begin, request)
        return AsyncProcess(self._threads, begin, data, for_one_loop=True)

    async def fork(self, count: int = 1) -> "list[AsyncSandbox]":
        made = await _all_or_none(partial(self._blocking.fork, count))
        return [type(self)(sandbox) for sandbox in made]

    async def close(self) -> None:
        await self._end(self._blocking.close)

    async def kill(self) -> None:
        await self._end(self._blocking.kill)

    async def _end(self, end: Callable[[], None]) -> None:
        # Not on our own threads: its commands may hold them all.
        await asyncio.to_thread(end)
        await asyncio.to_thread(self._threads.shutdown)

    async def __aenter__(self) -> "AsyncSandbox":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Async{repr(self._blocking).removeprefix('<')}"


async def _all_or_none(make: Callable[[], list[Sandbox]]) -> list[Sandbox]:
    """Make them on a thread. Where that is cancelled, what still comes up is then ended."""
    making = _Making(make)
    work = Work(making.run)
    # Not on a thread that the end of the loop, or of the program, waits for: it may take an hour.
    threading.Thread(target=work.run, name="agentd-create", daemon=True).start()
    try:
        return await work.future
    except asyncio.CancelledError:
        making.give_up()
        raise


class _Making:
    """Sandboxes on their way to a task, or to their end where it has gone. Thread-safe."""

    def __init__(self, make: Callable[[], list[Sandbox]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._wanted = True
        self._made: list[Sandbox] = []

    def run(self) -> list[Sandbox]:
        made = self._make()
        with self._lock:
            if self._wanted:
                self._made = made
                return made
        _end_all(made)
        return []

    def give_up(self) -> None:
        with self._lock:
            self._wanted = False
            made, self._made = self._made, []
        if made:
            threading.Thread(target=_end_all, args=(made,), daemon=True).start()


def _end_all(sandboxes: list[Sandbox]) -> None:
    for sandbox in sandboxes:
        with contextlib.suppress(AgentdError):  # a daemon that has gone took it along, or its lease
            sandbox.close()
