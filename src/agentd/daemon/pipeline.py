"""The whole flow, top to bottom: who asks, whether they may, where it runs, what came of it."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from agentd.daemon.execution import Execution
from agentd.model.errors import InvalidInput
from agentd.model.result import Result
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.manager import MAX_FORKS, Manager, SandboxHandle

if TYPE_CHECKING:
    from agentd.sandbox.snapshots import Snapshot

Principal = str
Asked = TypeVar("Asked", SandboxSpec, ExecRequest)
# Authentication, policy, quota and audit are such steps: the request as it may go on, or Refused.
Step = Callable[[Principal, SandboxSpec | ExecRequest], SandboxSpec | ExecRequest]


class Pipeline:
    """Thread-safe where its steps are."""

    def __init__(self, manager: Manager, *steps: Step) -> None:
        self.manager = manager
        self._steps = steps

    def open(
        self, principal: Principal, spec: SandboxSpec, snapshot: "Snapshot | None" = None
    ) -> SandboxHandle:
        """A new sandbox, or one as a snapshot has it.

        Raises Refused, InvalidInput and SandboxError; nothing is left behind then.
        """
        admitted = self._admit(principal, spec)
        if snapshot is None:
            return self.manager.create(admitted)
        return self.manager.restore(admitted, snapshot)

    def fork(self, principal: Principal, handle: SandboxHandle, count: int) -> list[SandboxHandle]:
        """So many copies of it as it is now, each admitted by itself; all of them or none."""
        if not 1 <= count <= MAX_FORKS:
            raise InvalidInput(
                f"cannot fork {count} sandboxes", remediation=f"give 1 to {MAX_FORKS}"
            )
        specs = [self._admit(principal, handle.spec) for _ in range(count)]
        return self.manager.fork(handle, specs)

    def snapshot(self, handle: SandboxHandle, path: str | None = None) -> "Snapshot":
        return self.manager.snapshot(handle, path)

    def pause(self, handle: SandboxHandle) -> None:
        self.manager.pause(handle)

    def resume(self, handle: SandboxHandle) -> None:
        self.manager.resume(handle)

    def execute(
        self, principal: Principal, handle: SandboxHandle, request: ExecRequest, stdin: bytes = b""
    ) -> Result:
        """One command, its output captured and bounded, its end typed."""
        asked = msgspec.structs.replace(request, stdin=bool(stdin))
        with self.start(principal, handle, asked, capture=True) as execution:
            if stdin:
                execution.write(stdin)
                execution.close_stdin()
            return execution.finish()

    def start(
        self,
        principal: Principal,
        handle: SandboxHandle,
        request: ExecRequest,
        capture: bool = False,
        detached: bool = False,
    ) -> Execution:
        """A command whose stdin the caller feeds, and whose output it takes as it comes.

        ``capture`` keeps the output for the Result instead, 64 MiB a stream unless limited. A
        ``detached`` one goes on without us, and its ``tag`` finds it again.
        """
        admitted = self._admit(principal, _completed(request, handle))
        if detached:
            return Execution.detached(handle, admitted)
        return Execution.of(handle, admitted, capture=capture)

    def close(self, handle: SandboxHandle) -> None:
        self.manager.destroy(handle)

    def _admit(self, principal: Principal, asked: Asked) -> Asked:
        for step in self._steps:
            answer = step(principal, asked)
            if not isinstance(answer, type(asked)):
                raise TypeError(f"step {step!r} answered a {type(answer).__name__}")
            asked = answer
        return asked


def _completed(request: ExecRequest, handle: SandboxHandle) -> ExecRequest:
    """What the sandbox says where the request says nothing."""
    spec = handle.spec
    return msgspec.structs.replace(
        request,
        cwd=os.path.join(handle.wall.workspace, request.cwd or ".").removesuffix("/."),
        env={**spec.env, **request.env},
        timeout=request.timeout or spec.limits.timeout,
        output_limit=request.output_limit or spec.limits.output,
    )
