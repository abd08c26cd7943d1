"""What a task gives up, and what a closed sandbox and a capability that fails say: the same with
asyncio as without, and of a daemon as of this process."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from tests import ports
from tests.security.daemons import Daemon, running, until

from agentd import (
    AgentdError,
    AsyncClient,
    AsyncSandbox,
    CallFailed,
    Client,
    NotFound,
    Sandbox,
    SandboxError,
    TooLarge,
)
from agentd.client.http import command, connection, killing
from agentd.model.api import ExecBody

_POLICY = """
default decision := {"allow": true}

decision := {"allow": true, "obligations": {"approve": true}} if {
	some word in input.parameters.args
	contains(word, "ghost")
}

decision := {"allow": true, "obligations": {"approve": true}} if {
	contains(input.parameters.path, "ghost")
}

decision := {"allow": true, "obligations": {"approve": true}} if {
	input.capability.name == "sandbox.port.v1"
}
"""
_COMMAND = "echo ghost > /workspace/ran"


@pytest.fixture(scope="module")
def tcp() -> str:
    return f"http://127.0.0.1:{ports.free()}"


@pytest.fixture(scope="module")
def daemon(tcp: str) -> Iterator[Daemon]:
    listen = f'[[listen]]\naddress = "{tcp.removeprefix("http://")}"\n'
    with running(listen, policy=_POLICY) as made:
        yield made


def _states(daemon: Daemon) -> list[str]:
    return [view["state"] for view in daemon.ask("GET", "/v1/approvals").json]


async def _streamed(sandbox: AsyncSandbox) -> None:
    async for _ in sandbox.stream(_COMMAND):
        pass


@pytest.mark.parametrize("by", ["unix", "tcp"])
@pytest.mark.parametrize(
    "begin",
    [lambda s: s.run(_COMMAND), lambda s: s.start(_COMMAND), _streamed],
    ids=["run", "start", "stream"],
)
def test_what_is_cancelled_while_it_waits_for_an_approval_is_withdrawn(
    daemon: Daemon, tcp: str, begin: Callable[[AsyncSandbox], Any], by: str
) -> None:
    where = {"url": daemon.url}
    if by == "tcp":
        where = {"url": tcp, "api_key": daemon.key("alice")}

    async def give_up() -> None:
        async with await AsyncSandbox.create(**where) as sandbox:
            before = len(_states(daemon))
            task = asyncio.ensure_future(begin(sandbox))
            await asyncio.to_thread(until, lambda: len(_states(daemon)) > before)
            task.cancel()
            await asyncio.wait({task}, timeout=120)
            assert task.cancelled()
            await asyncio.to_thread(until, lambda: "pending" not in _states(daemon))
            assert set(_states(daemon)) == {"withdrawn"}
            assert not await sandbox.files.exists("/workspace/ran")

    asyncio.run(give_up())


_GHOST = "/workspace/ghost"
_OF_FILES: dict[str, Callable[[AsyncSandbox], Any]] = {
    "write": lambda s: s.files.write(_GHOST, b"x"),
    "write much": lambda s: s.files.write(_GHOST, b"x" * (16 << 20)),
    "write pieces": lambda s: s.files.write(_GHOST, (b"x" * (1 << 20) for _ in range(16))),
    "read": lambda s: s.files.read(_GHOST),
    "stat": lambda s: s.files.stat(_GHOST),
    "mkdir": lambda s: s.files.mkdir(_GHOST),
    "remove": lambda s: s.files.remove(_GHOST),
    "read_iter": lambda s: anext(s.files.read_iter(_GHOST)),
    "watch": lambda s: anext(s.files.watch(_GHOST)),
    "port": lambda s: s.ports.open(8080),
}


@pytest.mark.parametrize("by", ["unix", "tcp"])
def test_files_and_ports_that_are_given_up_are_withdrawn_too(
    daemon: Daemon, tcp: str, by: str
) -> None:
    where = {"url": daemon.url}
    if by == "tcp":
        where = {"url": tcp, "api_key": daemon.key("alice")}

    async def give_up() -> None:
        async with await AsyncSandbox.create(**where) as sandbox:
            for name, begin in _OF_FILES.items():
                task = asyncio.ensure_future(begin(sandbox))
                await asyncio.to_thread(until, lambda: "pending" in _states(daemon))
                task.cancel()
                await asyncio.wait({task}, timeout=120)
                try:
                    assert task.cancelled(), f"{name} goes on"
                    # A daemon that reads no more of an upload does not see that its client goes.
                    if name not in ("write much", "write pieces"):
                        await asyncio.to_thread(
                            until, lambda: "pending" not in _states(daemon), 120
                        )
                finally:
                    _withdraw_all(daemon)
            assert (await sandbox.run("ls -A")).text == ""

    asyncio.run(give_up())


def test_a_forward_is_closed_though_a_connection_of_it_waits_for_an_approval(
    daemon: Daemon,
) -> None:
    with Sandbox.create(url=daemon.url) as sandbox:
        forward = sandbox.ports.forward(8080)
        with socket.create_connection(forward.address):
            until(lambda: "pending" in _states(daemon))
            closing = threading.Thread(target=forward.close, daemon=True)
            closing.start()
            closing.join(60)
            assert not closing.is_alive(), _states(daemon)
            until(lambda: "pending" not in _states(daemon))


def _withdraw_all(daemon: Daemon) -> None:
    for view in daemon.ask("GET", "/v1/approvals").json:
        daemon.ask("POST", f"/v1/approvals/{view['id']}/withdraw")


def test_what_a_client_is_asked_no_more_is_withdrawn(daemon: Daemon) -> None:
    box = daemon.sandbox()

    async def give_up() -> None:
        async with AsyncClient(daemon.url) as client:
            task = asyncio.ensure_future(client.commands.exec(box, ExecBody(cmd=_COMMAND)))
            await asyncio.to_thread(until, lambda: "pending" in _states(daemon))
            task.cancel()
            await asyncio.wait({task}, timeout=120)
            assert task.cancelled()
            await asyncio.to_thread(until, lambda: "pending" not in _states(daemon))

    try:
        asyncio.run(give_up())
    finally:
        _withdraw_all(daemon)  # what the end of a loop would wait for


def test_a_dial_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 3600.0)

    async def give_up(where: str) -> None:
        async with AsyncClient(where) as client:
            task = asyncio.ensure_future(client.machine.version())
            await asyncio.sleep(0.2)  # as good as any other moment
            task.cancel()
            await asyncio.wait({task}, timeout=120)
            assert task.cancelled()

    with ExitStack() as held:
        server = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = server.getsockname()
        for _ in range(3):  # the rest of its queue
            full = held.enter_context(socket.socket())
            full.setblocking(False)
            full.connect_ex(address)
        asyncio.run(give_up(f"http://127.0.0.1:{address[1]}"))


def test_a_command_whose_daemon_is_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # Until it is looked for again: once more than there are goes that may have come to nothing.
    monkeypatch.setattr(command, "DELAYS", (3600.0, 3600.0))

    async def give_up(own: Daemon) -> None:
        async with await AsyncSandbox.create(url=own.url) as sandbox:
            process = await sandbox.start("exec sleep 600")
            task = asyncio.ensure_future(process.wait())
            await asyncio.to_thread(own.stop, kill=True)
            held = process._process._running  # type: ignore[union-attr]
            await asyncio.to_thread(until, lambda: held._socket is None)  # type: ignore[attr-defined]
            task.cancel()
            await asyncio.wait({task}, timeout=30)
            assert task.cancelled()
            await asyncio.to_thread(own.start)

    with running() as own:
        asyncio.run(give_up(own))


def test_a_command_of_a_daemon_that_hangs_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killing, "KILL_SECONDS", 3.0)
    with running() as own, Sandbox.create(url=own.url) as sandbox:
        process = sandbox.start("exec sleep 600")
        assert own.process is not None
        os.kill(own.process.pid, signal.SIGSTOP)
        closing = threading.Thread(target=process.close, daemon=True)
        try:
            closing.start()
            closing.join(60)
            assert not closing.is_alive()
        finally:
            os.kill(own.process.pid, signal.SIGCONT)
        until(lambda: sandbox.run("pgrep -c sleep; true").text == "0\n")  # it was told


def test_a_client_needs_no_thread_of_the_loop(daemon: Daemon) -> None:
    let_go = threading.Event()

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        held = loop.run_in_executor(None, let_go.wait, 300)
        try:
            async with AsyncClient(daemon.url) as client:
                assert await asyncio.wait_for(client.machine.version(), 120)
        finally:
            let_go.set()
            await held

    asyncio.run(ask())


def test_what_is_cancelled_as_it_runs_is_killed_as_before(daemon: Daemon) -> None:
    async def give_up() -> None:
        async with await AsyncSandbox.create(url=daemon.url) as sandbox:
            for begin in (sandbox.run, lambda words: _waited(sandbox, words)):
                task = asyncio.ensure_future(begin("touch begun; sleep 600; touch ran"))
                while not await sandbox.files.exists("/workspace/begun"):
                    await asyncio.sleep(0.02)
                task.cancel()
                await asyncio.wait({task}, timeout=120)
                assert task.cancelled()
                await sandbox.files.remove("/workspace/begun")
            left = (await sandbox.run("pgrep -c sleep; true")).text
            assert left.strip() == "0"

    asyncio.run(give_up())


async def _waited(sandbox: AsyncSandbox, words: str) -> None:
    async with await sandbox.start(words) as process:
        await process.wait()


@pytest.mark.parametrize("at", ["here", "a daemon"])
def test_a_capability_that_fails_is_no_sandbox_that_is_not_there(daemon: Daemon, at: str) -> None:
    where = {"embedded": True} if at == "here" else {"url": daemon.url}
    with Sandbox.create(**where) as sandbox:
        with pytest.raises(CallFailed, match=r"none\.txt: No such file") as failed:
            sandbox.call("fs.read.v1", path="none.txt")
        assert failed.value.code == "not_found"
        with pytest.raises(CallFailed, match=r"none\.txt"):
            sandbox.call("fs.read.v1", path="none.txt", emit=lambda kind, data: None)
        with pytest.raises(NotFound, match="there is no capability"):
            sandbox.call("fs.red.v1", path="none.txt")
        with pytest.raises(TooLarge, match="parameters"):
            sandbox.call("fs.write.v1", path="a", content="x" * (9 << 20))

    async def call() -> None:
        async with await AsyncSandbox.create(**where) as sandbox:
            with pytest.raises(CallFailed) as failed:
                await sandbox.call("fs.read.v1", path="none.txt")
            assert failed.value.code == "not_found"

    asyncio.run(call())


def test_no_sandbox_is_not_found_by_a_call_too(daemon: Daemon) -> None:
    with Client(daemon.url) as client, pytest.raises(NotFound, match="there is no sandbox"):
        client.capabilities.call("fs.list.v1", {"path": "."}, sandbox="sbx-abcdefghijkl")


async def _run(sandbox: AsyncSandbox) -> None:
    await sandbox.run("true")


async def _start(sandbox: AsyncSandbox) -> None:
    await sandbox.start("true")


async def _call(sandbox: AsyncSandbox) -> None:
    await sandbox.call("fs.list.v1", path=".")


@pytest.mark.parametrize("at", ["here", "a daemon"])
def test_what_is_asked_of_a_closed_sandbox_is_told_so(daemon: Daemon, at: str) -> None:
    where = {"embedded": True} if at == "here" else {"url": daemon.url}

    async def ask() -> None:
        sandbox = await AsyncSandbox.create(**where)
        files = sandbox.files
        assert repr(sandbox) == f"<AsyncSandbox {sandbox.id} {sandbox.info.backend} ready>"
        await sandbox.close()
        assert repr(sandbox).endswith(" ended>")
        for ask_of in (AsyncSandbox.ping, AsyncSandbox.changes, _run, _start, _call):
            with pytest.raises(SandboxError, match=r"is ended \(create a new sandbox\)"):
                await ask_of(sandbox)
        with pytest.raises(AgentdError):
            await files.read("/etc/passwd")

    asyncio.run(ask())
