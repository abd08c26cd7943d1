"""What a task reads from a port or a command holds up no other task."""

import asyncio
import selectors
from typing import Any

import pytest
from tests.security.daemons import Daemon, fixture

from agentd import AsyncClient, AsyncSandbox

daemon = fixture()
ECHO = """
import socket
server = socket.create_server(("127.0.0.1", 8080))
print("up", flush=True)
while True:
    one, _ = server.accept()
    while data := one.recv(1 << 16):
        one.sendall(data)
    one.close()
"""


class Counting(selectors.EpollSelector):
    """Counts how often its loop looked."""

    looks = 0

    def select(self, timeout: float | None = None) -> Any:
        self.looks += 1
        return super().select(timeout)


async def served(sandbox: AsyncSandbox) -> None:
    await sandbox.files.write("/workspace/echo.py", ECHO)
    await sandbox.run("python3 echo.py > up 2>&1 & until grep -q up up; do sleep .05; done")


async def talk(port: Any) -> None:
    async with port:
        coming = asyncio.create_task(port.recv())
        await asyncio.sleep(0)  # it waits; the loop goes on
        await port.send(b"hello")
        assert await coming == b"hello"
        with pytest.raises(TimeoutError):
            await port.recv(0.01)
        cancelled = asyncio.create_task(port.recv())
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled

        async def read() -> int:
            count = 0
            while piece := await port.recv():
                count += len(piece)
            return count

        reading = asyncio.create_task(read())
        await port.send(bytes(3 << 20))  # more than is on its way at once
        await port.half_close()
        assert await reading == 3 << 20


@pytest.mark.parametrize("of_daemon", [False, True])
def test_a_port_of_a_sandbox(daemon: Daemon, of_daemon: bool) -> None:
    where: dict[str, Any] = {"url": daemon.url} if of_daemon else {"embedded": True}

    async def main() -> None:
        async with await AsyncSandbox.create(**where) as sandbox:
            await served(sandbox)
            await talk(await sandbox.ports.open(8080))

    asyncio.run(asyncio.wait_for(main(), 120))


def test_a_port_and_the_output_of_a_clients_sandbox(daemon: Daemon) -> None:
    async def main() -> None:
        async with (
            await AsyncSandbox.create(url=daemon.url) as sandbox,
            AsyncClient(daemon.url) as client,
        ):
            await served(sandbox)
            await talk(await client.ports.open(sandbox.id, 8080))
            process = await sandbox.start("echo one; echo two")
            assert process.id is not None
            loop, more = asyncio.get_running_loop(), asyncio.Event()

            def notify() -> None:
                loop.call_soon_threadsafe(more.set)

            seen, ended = b"", False
            async with await client.commands.follow(sandbox.id, process.id, {}, notify) as output:
                while not ended:
                    await more.wait()
                    more.clear()
                    while events := await output.read(1 << 16):
                        seen += b"".join(event.data for event in events)
                        ended = ended or events[-1].kind == "exit"
            assert seen == b"one\ntwo\n"

    asyncio.run(asyncio.wait_for(main(), 120))


@pytest.mark.parametrize("of_daemon", [False, True])
def test_sending_waits_beside_what_is_not_read(daemon: Daemon, of_daemon: bool) -> None:
    where: dict[str, Any] = {"url": daemon.url} if of_daemon else {"embedded": True}
    selector = Counting()

    async def main() -> None:
        async with await AsyncSandbox.create(**where) as sandbox:
            await served(sandbox)
            async with await sandbox.ports.open(8080) as port:
                size = 64 << 20
                sending = asyncio.create_task(port.send(bytes(size)))
                await asyncio.sleep(2)  # each end is full of what nobody reads
                before = selector.looks
                await asyncio.sleep(2)
                assert selector.looks - before < 400, "it spins"
                assert not sending.done()
                while size:
                    size -= len(await port.recv())
                await sending

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(asyncio.wait_for(main(), 120))
