"""A sandbox of this process, behind the same port as a daemon's."""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

import msgspec

from agentd.client import build
from agentd.client.build import SandboxOptions
from agentd.model.drive import Stepped, execute
from agentd.model.errors import InvalidInput, Refused

if TYPE_CHECKING:
    from agentd.client.embedded import Command, Pipeline, SandboxHandle, Snapshot
    from agentd.client.http.calls import Emit
    from agentd.client.ports import Snapshot as KeptState
    from agentd.model.api import CallView
    from agentd.model.enforcement import Enforcement
    from agentd.model.principal import Principal
    from agentd.model.result import Result, SandboxInfo
    from agentd.model.spec import ExecRequest


class LocalCommand(Stepped):
    id = None
    before: Mapping[str, bytes] = {}

    def __init__(self, command: "Command") -> None:
        self._command = command
        self.cursors = {"stdout": 0, "stderr": 0}
        self.write = command.write
        self.close_stdin = command.close_stdin
        self.kill = command.kill
        self.finish = command.finish

    @property
    def pid(self) -> int | None:
        return self._command.pid

    @property
    def exit(self) -> object | None:
        return self._command.exit

    @property
    def backlog(self) -> int:
        return self._command.backlog

    def step(
        self, timeout: float | None = None, extra_fds: Sequence[int] = ()
    ) -> tuple[list[tuple[str, bytes]], list[int]]:
        chunks, ready = self._command.step(timeout, extra_fds)
        for name, data in chunks:
            self.cursors[name] += len(data)
        return chunks, ready

    def signal(self, number: int) -> None:
        self._command.signal(number)

    def resize(self, rows: int, cols: int) -> None:
        self._command.resize(rows, cols)

    def detach(self) -> NoReturn:
        raise _needs_daemon("to let a command go on")

    def close(self) -> None:
        self._command.close()


class LocalSandbox:
    lasting = False

    def __init__(
        self, pipeline: "Pipeline", handle: "SandboxHandle", principal: "Principal"
    ) -> None:
        self.pipeline = pipeline
        self.handle = handle
        self.principal = principal
        self.labels: Mapping[str, str] = {}
        self._owner = os.getpid()

    @property
    def id(self) -> str:
        return self.handle.id

    @property
    def url(self) -> None:
        return None

    @property
    def state(self) -> str:
        return str(self.handle.state)

    @property
    def info(self) -> "SandboxInfo":
        return self.handle.info

    @property
    def enforcement(self) -> "Enforcement":
        return self.handle.enforcement

    @property
    def files(self) -> Any:
        return self.handle.guest.files

    def execute(self, request: "ExecRequest", stdin: bytes, wake: int = -1) -> "Result":
        if wake < 0:
            return self.pipeline.execute(self.principal, self.handle, request, stdin)
        asked = msgspec.structs.replace(request, stdin=bool(stdin))
        with self.start(asked, capture=True) as running:
            return execute(running, stdin, wake)

    def start(self, request: "ExecRequest", *, capture: bool = False) -> LocalCommand:
        return LocalCommand(self.pipeline.start(self.principal, self.handle, request, capture))

    def attach(self, process: str, cursors: Mapping[str, int]) -> NoReturn:
        raise _needs_daemon("to attach to a command")

    def call(
        self,
        capability: str,
        parameters: Mapping[str, Any],
        emit: "Emit | None",
        bundle: str,
        cancel: int = -1,
    ) -> "CallView":
        from agentd.client import embedded
        from agentd.model.api import CallBody

        body = CallBody(
            capability=capability,
            parameters=dict(parameters),
            sandbox=self.id,
            bundle=bundle or None,
        )
        return embedded.call(self.pipeline, self.principal, body, emit, self.handle, cancel)

    def changes(self) -> tuple[str, ...]:
        return self.handle.overlay().changes()

    def apply(self) -> None:
        self.handle.overlay().apply()

    def pause(self) -> None:
        self.pipeline.manager.pause(self.handle)

    def resume(self) -> None:
        self.pipeline.manager.resume(self.handle)

    def snapshot(self, path: str | os.PathLike[str] | None) -> "Snapshot":
        return self.pipeline.manager.snapshot(
            self.handle, None if path is None else os.fspath(path)
        )

    def fork(self, count: int) -> "Sequence[LocalSandbox]":
        made = self.pipeline.fork(self.principal, self.handle, count)
        return [LocalSandbox(self.pipeline, handle, self.principal) for handle in made]

    def ping(self) -> dict[str, object]:
        return dict(self.handle.guest.call("sys.ping"))

    def renew(self, ttl: str | float) -> NoReturn:
        raise _needs_daemon("to renew a lease")

    def kill(self) -> None:
        self.pipeline.close(self.handle)

    def forget(self) -> None:
        if os.getpid() != self._owner:
            return  # a forked copy: the sandbox belongs to the original
        self.kill()
        warnings.warn(
            f"sandbox {self.id} was never closed (use it in a with statement)",
            ResourceWarning,
            stacklevel=3,
        )


def create(
    *,
    snapshot: "KeptState | str | os.PathLike[str] | None" = None,
    labels: Mapping[str, str] | None = None,
    ttl: str | float | None = None,
    **options: Unpack[SandboxOptions],
) -> LocalSandbox:
    """Raises InvalidInput, Refused, SandboxError."""
    from agentd.client import embedded

    if labels or ttl is not None:
        raise InvalidInput(
            f"{'labels are' if labels else 'ttl is'} for the sandboxes of a daemon",
            remediation="leave them out, or give url=",
        )
    pipeline, principal = embedded.shared(), embedded.principal()
    if snapshot is None:
        spec = build.sandbox_spec(**options)
        return LocalSandbox(pipeline, pipeline.open(principal, spec), principal)
    kept = embedded.load_snapshot(snapshot)
    spec = build.restored_spec(kept.spec, **options)
    return LocalSandbox(pipeline, pipeline.open(principal, spec, kept), principal)


def _needs_daemon(what: str) -> Refused:
    return Refused(
        f"a daemon is needed {what}",
        cause="this sandbox lives and ends with this process",
        remediation="give url=, with agentd serve running",
    )
