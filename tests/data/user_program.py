"""A program as users write it, for type checkers alone: each line that is wrong says how."""

import os
from collections.abc import Mapping, Sequence
from typing import Literal, assert_type

import agentd
from agentd import (
    AgentdError,
    AsyncProcess,
    AsyncSandbox,
    CallFailed,
    CallView,
    Change,
    Chunk,
    CodeResult,
    CommandFailed,
    Control,
    Entry,
    ExecLimits,
    ExecOptions,
    Full,
    Process,
    Pty,
    Refused,
    Result,
    Sandbox,
    SandboxError,
    SandboxOptions,
    Snapshot,
    Unreachable,
)


def solve(code: str, **options: str) -> str:
    tight: SandboxOptions = {"timeout": "30s", "isolation": "namespace", "env": options}
    fast: ExecOptions = {"limits": ExecLimits(address_space=256 << 20), "cwd": "/workspace"}
    with Sandbox.create(ttl="10m", **tight) as sb:
        assert_type(sb, Sandbox)
        assert_type(sb.files.write("/workspace/job.py", code), int)
        result = sb.run(["python3", "job.py"], check=True, **fast)
        assert_type(result, Result)
        assert_type(result.text, str)
        assert_type(result.cause.code, agentd.CauseCode)
        assert_type(sb.enforcement, Mapping[str, Control])
        for chunk in sb.stream("make test", stdin="yes"):
            assert_type(chunk, Chunk)
            print(chunk, end="")
        with sb.start(["sh"], stdin=True, pty=(24, 80)) as shell:
            assert_type(shell, Process)
            shell.write("exit\n")
            assert_type(shell.wait(), Result)
        assert_type(sb.files.list("/workspace"), list[Entry])
        assert_type(sb.call("fs.list.v1", path="."), CallView)
        assert_type(sb.changes(), tuple[str, ...])
        with sb.snapshot() as kept:
            assert_type(kept, Snapshot)
            assert_type(kept.path, str | None)
            Sandbox.create(snapshot=kept).close()
        assert_type(sb.fork(2), list[Sandbox])
    return result.text


async def several(urls: Sequence[str]) -> None:
    for url in urls:
        async with await AsyncSandbox.create(url=url, labels={"job": "1"}, ttl="10m") as sb:
            assert_type(sb, AsyncSandbox)
            assert_type(await sb.run("true", env={"A": "b"}, timeout=2.5), Result)
            stream = sb.stream(["cat"], stdin="x")
            assert_type(stream, AsyncProcess)
            async for chunk in stream:
                assert_type(chunk.text, str)
            assert_type(stream.result.ok, bool)
            assert_type(await sb.run_code("6 * 7", timeout="5s"), CodeResult)
            assert_type(await sb.files.exists("/workspace"), bool)
            assert_type(await sb.files.list("/"), list[Entry])
            assert_type((await sb.files.stat("/")).type == "dir", bool)
            await sb.files.mkdir("/workspace/a", parents=True, mode=0o700)
            await sb.files.remove("/workspace/a", recursive=True)
            async for change in sb.files.watch("/workspace"):
                assert_type(change, Change)
                assert_type(change.kind, Literal["create", "modify", "delete", "move", "overflow"])


def careful() -> int:
    try:
        return len(solve("print(1)"))
    except CommandFailed as error:
        return error.result.exit_code or 1
    except CallFailed as error:
        print(error.code, error.remediation)
    except Full as error:
        print(error.retry_after)
    except (Refused, SandboxError, Unreachable) as error:
        print(error.message)
    except AgentdError as error:
        print(error.as_dict()["code"], os.getpid(), agentd.__version__)
    return 1


def mistaken(sb: Sandbox) -> None:
    Sandbox.create(memroy="1G")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Sandbox.create(timeout=[])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sb.run("true", tiemout=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    sb.ruin("true")  # type: ignore[attr-defined]  # pyright: ignore
    print(agentd.Sandbx)  # type: ignore[attr-defined]  # pyright: ignore
    Pty(rows="24")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
