"""The SDK: a sandbox as an object. Nothing of it is imported before it is used."""

import os
import warnings
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Unpack

from agentd.client import build
from agentd.client.build import Command, ExecOptions, SandboxOptions
from agentd.client.files import Files
from agentd.model.enforcement import Enforcement
from agentd.model.errors import AgentdError, InvalidInput, Refused
from agentd.model.result import Result, SandboxInfo
from agentd.model.spec import ExecRequest, Pty

if TYPE_CHECKING:
    from agentd.client.embedded import Execution, Pipeline, SandboxHandle, Snapshot


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
        snapshot: "Snapshot | str | os.PathLike[str] | None" = None,
        **options: Unpack[SandboxOptions],
    ) -> "Sandbox":
        """A sandbox that is ready; ``SandboxOptions`` has what may be asked for.

        From a ``snapshot``, or the path it was kept at, it comes up as that sandbox was, and only
        ``env``, ``timeout`` and ``output`` may be given. Raises InvalidInput, Refused,
        SandboxError.
        """
        from agentd.client import embedded

        pipeline, principal = embedded.shared(), embedded.principal()
        if snapshot is None:
            spec = build.sandbox_spec(**options)
            return cls(pipeline, pipeline.open(principal, spec), principal)
        kept = embedded.load_snapshot(snapshot)
        spec = build.restored_spec(kept.spec, **options)
        return cls(pipeline, pipeline.open(principal, spec, kept), principal)

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
        stdin: bytes | str | None = None,
        check: bool = False,
        **options: Unpack[ExecOptions],
    ) -> Result:
        """Run to its end, output captured; a plain string is run by ``sh -c``.

        A command that fails is a Result like any other, unless ``check``: then CommandFailed.
        """
        request = build.exec_request(cmd, **options)
        data = stdin.encode() if isinstance(stdin, str) else stdin or b""
        result = self._pipeline.execute(self._principal, self._handle, request, data)
        if check and result.status != "ok":
            raise CommandFailed(result)
        return result

    def stream(
        self, cmd: Command, *, stdin: bytes | str | None = None, **options: Unpack[ExecOptions]
    ) -> Process:
        """Its output as it comes: iterate over the chunks, then ``result``."""
        process = self.start(cmd, stdin=stdin is not None, **options)
        if stdin is not None:
            process.write(stdin)
            process.close_stdin()
        return process

    def start(
        self,
        cmd: Command,
        *,
        stdin: bool = False,
        pty: Pty | tuple[int, int] | None = None,
        **options: Unpack[ExecOptions],
    ) -> Process:
        """Begin a command and return at once. ``pty`` is a Pty or (rows, columns)."""
        terminal = Pty(*pty) if isinstance(pty, tuple) else pty
        return Process(self._begin(build.exec_request(cmd, stdin=stdin, pty=terminal, **options)))

    def _begin(self, request: ExecRequest, capture: bool = False) -> "Execution":
        return self._pipeline.start(self._principal, self._handle, request, capture)

    def changes(self) -> tuple[str, ...]:
        """Of a copy-on-write workspace: ``A new``, ``M changed``, ``D gone``, by path."""
        return tuple(self._overlay().changes())

    def apply(self) -> None:
        """Write the changes of a copy-on-write workspace to the host's directory."""
        self._overlay().apply()

    def pause(self) -> None:
        """Nothing in it runs until ``resume``; the time of its commands goes on.

        Raises Refused where its wall cannot, as with all of the following.
        """
        self._pipeline.pause(self._handle)

    def resume(self) -> None:
        self._pipeline.resume(self._handle)

    def snapshot(self, path: str | os.PathLike[str] | None = None) -> "Snapshot":
        """Its state as it is now, for ``create(snapshot=...)``; it goes on running.

        Kept at ``path`` until it is deleted; without one, for as long as this process lives. What
        runs in the background stands still meanwhile, and goes on here and in every copy; what is
        asked of the sandbox meanwhile waits. Raises SandboxError while a command that was started
        from here has not ended: its stream would not survive.
        """
        return self._pipeline.snapshot(self._handle, None if path is None else os.fspath(path))

    def fork(self, count: int = 1) -> "list[Sandbox]":
        """So many copies as it is now, 64 at most: all of them, or none and an error."""
        made = self._pipeline.fork(self._principal, self._handle, count)
        return [type(self)(self._pipeline, handle, self._principal) for handle in made]

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
