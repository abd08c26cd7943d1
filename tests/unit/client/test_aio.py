import asyncio
import os

import pytest

from agentd import AsyncSandbox
from agentd.client.sandbox import CommandFailed
from agentd.model.cause import CauseCode


def go(test):
    """Run ``test(sandbox)`` in a loop of its own."""

    async def main():
        async with await AsyncSandbox.create() as sandbox:
            return await test(sandbox)

    return asyncio.run(main())


async def until(path):
    while not os.path.exists(path):
        await asyncio.sleep(0.01)


def test_run_and_files(backend, tmp_path):
    async def test(sandbox):
        await sandbox.files.write(str(tmp_path / "a"), "x")
        result = await sandbox.run("cat a; cat", stdin=b"y" * 300_000)
        assert result.stdout == b"x" + b"y" * 300_000
        assert await sandbox.files.read_text(str(tmp_path / "a")) == "x"
        assert [e.name for e in await sandbox.files.list(str(tmp_path))] == ["a"]
        assert (await sandbox.ping())["unix_ns"]
        with pytest.raises(CommandFailed):
            await sandbox.run("exit 1", check=True)

    go(test)


def test_commands_run_side_by_side(backend, tmp_path):
    async def test(sandbox):
        # Each waits for the other: one after the other they would never end.
        one = sandbox.run("mkfifo p; echo hi > p", timeout=30)
        other = sandbox.run("while ! test -p p; do sleep .01; done; cat p", timeout=30)
        return [result.text for result in await asyncio.gather(one, other)]

    assert go(test) == ["", "hi\n"]


def test_stream(backend):
    async def test(sandbox):
        return "".join([str(chunk) async for chunk in sandbox.stream("echo a; echo b")])

    assert go(test) == "a\nb\n"


def test_leaving_a_stream_early_kills_the_command(backend):
    async def test(sandbox):
        stream = sandbox.stream("echo $$; exec sleep 60")
        pid = int(str(await anext(stream)))
        await stream.aclose()
        # The sandbox still stands: only the command may end.
        while os.path.exists(f"/proc/{pid}"):
            await asyncio.sleep(0.01)
        return (await sandbox.run("echo alive")).text

    assert go(test) == "alive\n"


def test_a_process(backend):
    async def test(sandbox):
        async with await sandbox.start("read x; echo $x; read y", stdin=True) as process:
            await process.write("in\n")
            await process.close_stdin()
            chunks = [chunk.data async for chunk in process]
            assert b"".join(chunks) == b"in\n"
            return (await process.wait()).exit_code

    assert go(test) == 1


def test_kill(backend):
    async def test(sandbox):
        async with await sandbox.start("sleep 60") as process:
            await process.kill()
            return (await process.wait()).cause.code

    assert go(test) is CauseCode.CANCELLED


def test_cancelling_kills_the_command(backend, tmp_path):
    async def test(sandbox):
        task = asyncio.create_task(sandbox.run("echo $$ > tmp; mv tmp pid; exec sleep 60"))
        await until(tmp_path / "pid")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pid = int((tmp_path / "pid").read_text())
        while os.path.exists(f"/proc/{pid}"):
            await asyncio.sleep(0.01)
        return (await sandbox.run("echo alive")).text

    assert go(test) == "alive\n"


def test_cancelling_a_wait_kills_the_command(backend):
    async def test(sandbox):
        process = await sandbox.start("sleep 60")
        waiting = asyncio.create_task(process.wait())
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return (await sandbox.run("echo alive")).text

    assert go(test) == "alive\n"
