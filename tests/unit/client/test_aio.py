import asyncio
import contextlib
import gc
import os
import threading
import time

import pytest

from agentd import AsyncSandbox, ExecLimits
from agentd.client.aio_thread import MAX_THREADS
from agentd.client.sandbox import CommandFailed
from agentd.model.errors import InvalidInput, OperationFailed, PolicyDenied
from agentd.model.result import CauseCode


def go(test):
    """Run ``test(sandbox)`` in a loop of its own."""

    async def main():
        async with await AsyncSandbox.create() as sandbox:
            return await test(sandbox)

    return asyncio.run(main())


async def until(path):
    while not os.path.exists(path):
        await asyncio.sleep(0.01)


def test_streamed_text_is_never_cut_inside_a_character(backend):
    async def test(sandbox):
        halves = r"printf 'a\342'; printf '\303' >&2; read x"
        rests = r"printf '\202\254\377z\360\237'; printf '\251' >&2"
        seen, read = {"stdout": "", "stderr": ""}, b""
        async with await sandbox.start(f"{halves}; {rests}", stdin=True) as process:
            async for chunk in process:
                seen[chunk.stream] += chunk.text
                read += chunk.data
                if sorted(read) == sorted(b"a\xe2\xc3"):
                    await process.write("\n")
        assert seen == {"stdout": "a\N{EURO SIGN}\ufffdz\ufffd", "stderr": "\xe9"}

    go(test)


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
        one = sandbox.run("mkfifo p; echo hi > p", timeout=120)
        other = sandbox.run("while ! test -p p; do sleep .01; done; cat p", timeout=120)
        return [result.text for result in await asyncio.gather(one, other)]

    assert go(test) == ["", "hi\n"]


def test_stream(backend):
    async def test(sandbox):
        return "".join([str(chunk) async for chunk in sandbox.stream("echo a; echo b")])

    assert go(test) == "a\nb\n"


def test_a_stream_is_fed_and_has_a_result(backend):
    async def test(sandbox):
        stream = sandbox.stream("cat; echo x >&2; exit 3", stdin="z" * 300_000)
        assert (stream.id, stream.pid, stream.cursors) == (None, None, {})
        with pytest.raises(InvalidInput, match="has not ended"):
            _ = stream.result
        chunks = [chunk async for chunk in stream]
        assert "".join(c.text for c in chunks if c.stream == "stdout") == "z" * 300_000
        assert stream.result.exit_code == 3 and not stream.result.ok
        assert (await stream.wait()) is stream.result
        async with sandbox.stream(["cat"], stdin=b"") as other:
            assert (await other.wait()).ok

    go(test)


@pytest.mark.parametrize("held", [False, True])
def test_a_loop_that_is_left_early_kills_unless_the_stream_is_held(backend, held):
    async def test(sandbox):
        async with contextlib.AsyncExitStack() as stack:
            script = "echo $$; until [ -e go ]; do sleep .01; done; echo more; exec sleep 60"
            stream = sandbox.stream(script)
            if held:
                await stack.enter_async_context(stream)
            async for chunk in stream:
                pid = int(chunk.text)
                break
            if held:
                await sandbox.run("touch go")
                async for chunk in stream:
                    assert chunk.text == "more\n"
                    break
        while os.path.exists(f"/proc/{pid}"):
            await asyncio.sleep(0.01)
        return (await sandbox.run("echo alive")).text

    assert go(test) == "alive\n"


def test_a_stream_that_never_began_is_closed(backend):
    async def test(sandbox):
        stream = sandbox.stream("touch began")
        await stream.aclose()
        with pytest.raises(InvalidInput, match="closed before it began"):
            await stream.wait()
        assert not os.path.exists(f"{backend.workspace}/began")

    go(test)


def test_a_start_that_is_cancelled_leaves_no_command(backend, tmp_path, monkeypatch):
    pid_file, begun, go_on = tmp_path / "pid", threading.Event(), threading.Event()

    async def test(sandbox):
        begin = sandbox._blocking._begin

        def held_up(request, cancel):
            running = begin(request, cancel)
            while not pid_file.exists():
                time.sleep(0.01)
            begun.set()
            go_on.wait(120)
            return running

        monkeypatch.setattr(sandbox._blocking, "_begin", held_up)
        task = asyncio.create_task(sandbox.start("echo $$ > tmp; mv tmp pid; exec sleep 60"))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        while os.path.exists(f"/proc/{pid_file.read_text().strip()}"):
            await asyncio.sleep(0.01)
        return (await sandbox.run("echo alive")).text

    assert go(test) == "alive\n"


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


def test_a_large_file_comes_in_pieces(backend, tmp_path):
    data = os.urandom(3 << 20)
    (tmp_path / "big").write_bytes(data)

    async def test(sandbox):
        pieces = [piece async for piece in sandbox.files.read_iter(str(tmp_path / "big"))]
        with pytest.raises(OperationFailed, match="No such file"):
            await anext(sandbox.files.read_iter(str(tmp_path / "none")))
        return pieces

    pieces = go(test)
    assert len(pieces) > 1 and b"".join(pieces) == data


def test_leaving_a_file_early_frees_its_connection(backend, tmp_path):
    (tmp_path / "big").write_bytes(bytes(8 << 20))

    async def test(sandbox):
        for _ in range(3):
            pieces = sandbox.files.read_iter(str(tmp_path / "big"))
            assert await anext(pieces)
            await pieces.aclose()
        return (await sandbox.run("echo alive")).text

    assert go(test) == "alive\n"


def test_changes_are_watched(backend, tmp_path):
    async def test(sandbox):
        changes = sandbox.files.watch(str(tmp_path), recursive=True)
        first = asyncio.create_task(anext(changes))
        # Written again and again: nothing tells when the watch has begun.
        while not first.done():
            (tmp_path / "seen").write_bytes(b"x")
            await asyncio.sleep(0.01)
        await changes.aclose()
        return first.result().path

    assert go(test).endswith("seen")


def test_cancelling_a_watch_frees_its_thread(backend, tmp_path):
    async def test(sandbox):
        async def follow():
            async for _ in sandbox.files.watch(str(tmp_path)):
                pytest.fail("nothing changes here")

        # More than there are threads: each must give its own back.
        for _ in range(MAX_THREADS + 1):
            task = asyncio.create_task(follow())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return (await sandbox.ping())["unix_ns"]

    assert go(test)


def test_what_waits_for_a_thread_is_given_up_and_what_ends_a_command_waits_for_none(backend):
    async def test(sandbox):
        started = [await sandbox.start("echo x; exec sleep 600") for _ in range(MAX_THREADS)]
        for process in started:
            await anext(process)  # nothing more is told of it: who waits keeps a thread
        waiting = [asyncio.create_task(process.wait()) for process in started]
        asked = asyncio.create_task(sandbox.files.mkdir(f"{backend.workspace}/asked"))
        await asyncio.wait({asked}, timeout=0.1)
        asked.cancel()
        ended = asyncio.create_task(started[0].kill())
        try:
            await asyncio.wait({asked, ended}, timeout=120)
            assert asked.cancelled() and ended.done()
            assert (await waiting[0]).cause.code is CauseCode.CANCELLED
            assert not os.path.exists(f"{backend.workspace}/asked")
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.wait({*waiting, ended})

    go(test)


def test_a_stream_that_is_forgotten_leaves_nothing_open(backend):
    async def test(sandbox):
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(8):
            sandbox.stream("true")
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) < before + 8  # there were two of each

    go(test)


def test_limits_and_a_misspelt_option(backend):
    async def test(sandbox):
        with pytest.raises(TypeError, match="there is no option 'timeuot'; use one of: cwd"):
            await sandbox.run("true", timeuot=1)
        return (await sandbox.run("ulimit -n", limits=ExecLimits(open_files=99))).text

    assert go(test) == "99\n"


@pytest.fixture
def _calls(tmp_path, monkeypatch):
    """Calls decide by no policy, and are written down in the test's own folder."""
    monkeypatch.setenv("AGENTD_POLICY", "none")
    monkeypatch.setenv("AGENTD_DAEMON__STATE", str(tmp_path / "state"))


@pytest.mark.usefixtures("_calls")
def test_a_call(backend):
    async def test(sandbox):
        seen = []
        view = await sandbox.call(
            "shell.exec.v1",
            {"command": "sh"},
            args=["-c", "echo $WHO"],
            env={"WHO": "me"},
            emit=lambda *piece: seen.append(piece),
        )
        with pytest.raises(PolicyDenied):
            await sandbox.call("shell.exec.v1", command="true", bundle="sha256:other")
        return view, seen

    view, seen = go(test)
    assert (view.status, view.value["stdout"]) == ("ok", "me\n")
    assert seen == [("stdout", b"me\n")] and view.receipt == view.request_id


@pytest.mark.usefixtures("_calls")
def test_calls_run_side_by_side(backend, tmp_path):
    async def test(sandbox):
        # Each waits for the other: one after the other they would never end.
        reads = "while ! test -p p; do sleep .01; done; cat p"
        one = sandbox.call("shell.exec.v1", command="sh", args=["-c", "mkfifo p; echo hi > p"])
        other = sandbox.call("shell.exec.v1", command="sh", args=["-c", reads])
        return [view.value["stdout"] for view in await asyncio.gather(one, other)]

    assert go(test) == ["", "hi\n"]


@pytest.mark.usefixtures("_calls")
def test_cancelling_a_call_ends_it(backend, tmp_path):
    async def test(sandbox):
        sleep = f"sleep 6{os.getpid()}"  # nobody else's
        script = f"touch begun; {sleep}; touch done"
        task = asyncio.create_task(sandbox.call("shell.exec.v1", command="sh", args=["-c", script]))
        await until(tmp_path / "begun")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # All of its group has ended, and the sandbox is as it was.
        found = await sandbox.run(f"pgrep -fx '{sleep}' || true")
        assert not (tmp_path / "done").exists()
        return found.text

    assert go(test) == ""
