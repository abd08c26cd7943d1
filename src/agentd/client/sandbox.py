"""The SDK: a sandbox as an object. Nothing of it is imported before it is used."""

import os
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from agentd.client import build
from agentd.client.build import Command, Size, Time
from agentd.client.files import Files
from agentd.model.enforcement import Enforcement
from agentd.model.errors import AgentdError, InvalidInput, Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.mount import Mount
from agentd.model.result import Result, SandboxInfo
from agentd.model.spec import ExecRequest, Pty

if TYPE_CHECKING:
    from agentd.client.embedded import Execution, Pipeline, SandboxHandle


class CommandFailed(AgentdError):
    """``run(check=True)`` met a command that did not succeed; ``result`` has all of it."""

    code = "command_failed"

    def __init__(self, result: Result) -> None:
        super().__init__(
            f"command failed: {result.cause.message}", remediation=result.cause.remediation
        )
        self.result = result


class Chunk:
    """A piece of output: ``stream`` is "stdout" or "stderr", ``data`` its bytes."""

    __slots__ = ("data", "stream")

    def __init__(self, stream: str, data: bytes) -> None:
        self.stream = stream
        self.data = data

    def __str__(self) -> str:
        return self.data.decode(errors="replace")

    def __repr__(self) -> str:
        return f"Chunk({self.stream!r}, {self.data!r})"


class Process:
    """A running command: iterate for its output, ``wait`` for its Result. One thread drives it."""

    def __init__(self, execution: "Execution") -> None:
        self._execution = execution
        self._result: Result | None = None

    @property
    def pid(self) -> int | None:
        """Its process id inside, once it has started."""
        return self._execution.running.pid

    @property
    def result(self) -> Result:
        """Its Result; raises InvalidInput before the output is exhausted."""
        if self._result is None:
            raise InvalidInput("the command has not ended", remediation="read its output first")
        return self._result

    def __iter__(self) -> Iterator[Chunk]:
        if self._result is not None:
            return
        for name, data in self._execution.chunks():
            yield Chunk(name, data)
        self.wait()

    def write(self, data: bytes | str) -> None:
        self._execution.write(data.encode() if isinstance(data, str) else data)

    def close_stdin(self) -> None:
        self._execution.close_stdin()

    def signal(self, number: int) -> None:
        """To its process group."""
        self._execution.running.signal(number)

    def resize(self, rows: int, cols: int) -> None:
        self._execution.running.resize(rows, cols)

    def kill(self) -> None:
        """SIGKILL; ``wait`` then tells how it ended."""
        self._execution.kill()

    def wait(self) -> Result:
        """Until it has ended; output that was not read is dropped."""
        if self._result is None:
            self._result = self._execution.finish()
            self._execution.close()
        return self._result

    def close(self) -> None:
        """Free it; a command that still runs is killed."""
        self._execution.close()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Sandbox:
    """A wall with commands and files behind it. Made by ``create``; ends with ``close``."""

    def __init__(self, pipeline: "Pipeline", handle: "SandboxHandle", principal: str) -> None:
        self._pipeline = pipeline
        self._handle = handle
        self._principal = principal
        self._finalizer = weakref.finalize(self, _forgotten, pipeline, handle, os.getpid())

    @classmethod
    def create(
        cls,
        *,
        isolation: str | IsolationLevel | None = None,
        backend: str | None = None,
        memory: Size = None,
        cpus: float | str | None = None,
        pids: int | str | None = None,
        disk: Size = None,
        open_files: int | str | None = None,
        output: Size = None,
        timeout: Time = None,
        workspace: str | os.PathLike[str] | None = None,
        mounts: Iterable[str | Mount] = (),
        net: str = "none",
        user: str | int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> "Sandbox":
        """A sandbox that is ready.

        ``isolation`` is the least that will do: "namespace" unless a ``backend`` is named. Sizes
        are bytes or "256M", times seconds or "2s"; ``workspace`` is "PATH[:ro|rw|cow]", a mount
        "SRC:DST[:ro|rw]". Raises InvalidInput, Refused, SandboxError.
        """
        from agentd.client import embedded

        spec = build.sandbox_spec(
            isolation=isolation,
            backend=backend,
            memory=memory,
            cpus=cpus,
            pids=pids,
            disk=disk,
            open_files=open_files,
            output=output,
            timeout=timeout,
            workspace=workspace,
            mounts=mounts,
            net=net,
            user=user,
            env=env,
        )
        pipeline, principal = embedded.shared(), embedded.principal()
        return cls(pipeline, pipeline.open(principal, spec), principal)

    @property
    def id(self) -> str:
        return self._handle.id

    @property
    def info(self) -> SandboxInfo:
        return self._handle.info

    @property
    def enforcement(self) -> Enforcement:
        """What is really in force, control by control."""
        return self._handle.enforcement

    @property
    def files(self) -> Files:
        """Reading and writing inside, by absolute paths."""
        return Files(self._handle.guest.files)

    def run(
        self,
        cmd: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        timeout: Time = None,
        check: bool = False,
    ) -> Result:
        """Run to its end, output captured; a plain string is run by ``sh -c``.

        A command that fails is a Result like any other, unless ``check``: then CommandFailed.
        """
        request = build.exec_request(cmd, cwd=cwd, env=env, timeout=timeout)
        data = stdin.encode() if isinstance(stdin, str) else stdin or b""
        result = self._pipeline.execute(self._principal, self._handle, request, data)
        if check and result.status != "ok":
            raise CommandFailed(result)
        return result

    def stream(
        self,
        cmd: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        timeout: Time = None,
    ) -> Process:
        """Its output as it comes: iterate over the chunks, then ``result``."""
        process = self.start(cmd, cwd=cwd, env=env, stdin=stdin is not None, timeout=timeout)
        if stdin is not None:
            process.write(stdin)
            process.close_stdin()
        return process

    def start(
        self,
        cmd: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bool = False,
        pty: Pty | tuple[int, int] | None = None,
        timeout: Time = None,
    ) -> Process:
        """Begin a command and return at once. ``pty`` is a Pty or (rows, columns)."""
        terminal = Pty(*pty) if isinstance(pty, tuple) else pty
        request = build.exec_request(
            cmd, cwd=cwd, env=env, stdin=stdin, pty=terminal, timeout=timeout
        )
        return Process(self._begin(request))

    def _begin(self, request: ExecRequest, capture: bool = False) -> "Execution":
        return self._pipeline.start(self._principal, self._handle, request, capture)

    def changes(self) -> tuple[str, ...]:
        """Of a copy-on-write workspace: ``A new``, ``M changed``, ``D gone``, by path."""
        return tuple(self._overlay().changes())

    def apply(self) -> None:
        """Write the changes of a copy-on-write workspace to the host's directory."""
        self._overlay().apply()

    def ping(self) -> dict[str, object]:
        """What the agent inside answers. Raises BackendLost when it is gone."""
        return dict(self._handle.guest.call("sys.ping"))

    def close(self) -> None:
        """End everything in it; idempotent."""
        self._finalizer.detach()
        self._pipeline.close(self._handle)

    def kill(self) -> None:
        """The same as close: nothing inside is asked before it ends."""
        self.close()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Sandbox {self.id} {self._handle.backend} {self._handle.state}>"

    def _overlay(self) -> Any:
        wall = self._handle.wall
        if not hasattr(wall, "changes"):
            raise Refused(
                f"sandbox {self.id} has no copy-on-write workspace",
                remediation="create it with workspace='PATH:cow'",
            )
        return wall


def _forgotten(pipeline: "Pipeline", handle: "SandboxHandle", owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked copy: the sandbox belongs to the original
    pipeline.close(handle)
    warnings.warn(
        f"sandbox {handle.id} was never closed (use it in a with statement)",
        ResourceWarning,
        stacklevel=2,
    )
