"""The whole flow, top to bottom: who asks, whether they may, where it runs, what came of it.

Every way in comes here with a principal that it has authenticated. The gate then decides, and
writes down what it decided and how it ended: policy, approval, audit and receipt.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec

from agentd.daemon.execution import Concluded, Execution, completed
from agentd.model.errors import InvalidInput
from agentd.model.principal import Principal
from agentd.model.result import Result
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.manager import MAX_FORKS, Manager, SandboxHandle

if TYPE_CHECKING:
    from agentd.sandbox.snapshots import Snapshot

Labels = Mapping[str, str]
_NO_LABELS: Labels = {}


class Gate(Protocol):
    """What a principal asks for, as it may go on. Raises Refused, with nothing done."""

    def sandbox(self, who: Principal, spec: SandboxSpec, labels: Labels) -> SandboxSpec: ...

    def fork(self, who: Principal, handle: SandboxHandle, count: int, labels: Labels) -> None: ...

    def command(
        self, who: Principal, handle: SandboxHandle, request: ExecRequest, labels: Labels
    ) -> tuple[ExecRequest, Concluded]:
        """And who is to be told the command's end."""

    def adopted(
        self, who: Principal, handle: SandboxHandle, request: ExecRequest, id_: str, began: float
    ) -> Concluded:
        """Of a command that another daemon admitted, as the request ``id_``."""


class Pipeline:
    """Thread-safe where its gate is. Without one its holder may do all: it is their process."""

    def __init__(self, manager: Manager, gate: Gate | None = None) -> None:
        self.manager = manager
        self.gate = gate

    def open(
        self, who: Principal, spec: SandboxSpec, snapshot: "Snapshot | None" = None
    ) -> SandboxHandle:
        """A new sandbox, or one as a snapshot has it.

        Raises Refused, InvalidInput and SandboxError; nothing is left behind then.
        """
        return self.build(self.admit(who, spec), snapshot)

    def admit(self, who: Principal, spec: SandboxSpec, labels: Labels = _NO_LABELS) -> SandboxSpec:
        """As it may be built."""
        return spec if self.gate is None else self.gate.sandbox(who, spec, labels)

    def build(self, spec: SandboxSpec, snapshot: "Snapshot | None" = None) -> SandboxHandle:
        """Of a spec that was admitted."""
        if snapshot is None:
            return self.manager.create(spec)
        return self.manager.restore(spec, snapshot)

    def fork(
        self, who: Principal, handle: SandboxHandle, count: int, labels: Labels = _NO_LABELS
    ) -> list[SandboxHandle]:
        """So many copies of it as it is now; all of them or none."""
        if not 1 <= count <= MAX_FORKS:
            raise InvalidInput(
                f"cannot fork {count} sandboxes", remediation=f"give 1 to {MAX_FORKS}"
            )
        if self.gate is not None:
            self.gate.fork(who, handle, count, labels)
        return self.manager.fork(handle, [handle.spec] * count)

    def execute(
        self, who: Principal, handle: SandboxHandle, request: ExecRequest, stdin: bytes = b""
    ) -> Result:
        """One command, its output captured and bounded, its end typed."""
        asked = msgspec.structs.replace(request, stdin=bool(stdin))
        with self.start(who, handle, asked, capture=True) as execution:
            if stdin:
                execution.write(stdin)
                execution.close_stdin()
            return execution.finish()

    def start(
        self,
        who: Principal,
        handle: SandboxHandle,
        request: ExecRequest,
        capture: bool = False,
        detached: bool = False,
        labels: Labels = _NO_LABELS,
    ) -> Execution:
        """A command whose stdin the caller feeds, and whose output it takes as it comes.

        ``capture`` keeps the output for the Result instead, 64 MiB a stream unless limited. A
        ``detached`` one goes on without us, and its ``tag`` finds it again.
        """
        if self.gate is None:
            return begin(handle, request, capture=capture, detached=detached)
        whole = completed(request, handle)
        admitted, concluded = self.gate.command(who, handle, whole, labels)
        return begin(handle, admitted, concluded, capture=capture, detached=detached)

    def close(self, handle: SandboxHandle) -> None:
        self.manager.destroy(handle)


def begin(
    handle: SandboxHandle,
    request: ExecRequest,
    concluded: Concluded | None = None,
    *,
    capture: bool = False,
    detached: bool = False,
) -> Execution:
    """A command that was admitted: by itself, or with the call that it is a part of."""
    whole = completed(request, handle)
    if detached:
        return Execution.detached(handle, whole, concluded)
    return Execution.of(handle, whole, concluded, capture=capture)
