"""The whole flow, top to bottom: who asks, whether they may, where it runs, what came of it.

Every way in comes here with a principal that it has authenticated. The gate then decides, and
writes down what it decided and how it ended: policy, approval, audit and receipt.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from agentd.daemon.execution import Execution, completed
from agentd.model.errors import InvalidInput
from agentd.model.principal import Principal
from agentd.model.result import Result
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.manager import MAX_FORKS, Manager, SandboxHandle

if TYPE_CHECKING:
    from agentd.daemon.admission.gate import Gate
    from agentd.sandbox.snapshots import Snapshot

Labels = Mapping[str, str]
_NO_LABELS: Labels = {}


class Pipeline:
    """Thread-safe where its gate is. Without one its holder may do all: it is their process."""

    def __init__(self, manager: Manager, gate: "Gate | None" = None) -> None:
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
            return begin(handle, request, capture=capture)
        whole = completed(request, handle)
        within, admission = self.gate.command(who, handle, whole, labels)
        if detached:
            return Execution.detached(handle, within, admission)
        return Execution.of(handle, within, admission, capture=capture)

    def close(self, handle: SandboxHandle) -> None:
        self.manager.destroy(handle)


def begin(handle: SandboxHandle, request: ExecRequest, *, capture: bool = False) -> Execution:
    """A command that nobody is asked about, or that is a part of the call that was decided."""
    return Execution.of(handle, completed(request, handle), None, capture=capture)
