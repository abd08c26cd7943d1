"""The pipeline's gate: policy and audit around sandboxes and commands that no call asks for."""

from collections.abc import Mapping
from typing import Any

import msgspec

from agentd.daemon.admission import acts, oblige
from agentd.daemon.admission.admission import Admission, Admitted
from agentd.daemon.admission.facts import Ran
from agentd.daemon.admission.records import Ending, Records
from agentd.daemon.execution import Concluded
from agentd.model.decision import Decision
from agentd.model.errors import PolicyDenied
from agentd.model.principal import ORDINARY, Principal
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.handle import SandboxHandle

Labels = Mapping[str, str]
_ANYBODY = Principal("anybody", frozenset(ORDINARY), "key")


class PolicyGate:
    """Thread-safe."""

    def __init__(self, admission: Admission, records: Records) -> None:
        self._admission = admission
        self._records = records

    def sandbox(self, who: Principal, spec: SandboxSpec, labels: Labels) -> SandboxSpec:
        admitted = self._admission.admit(acts.creation(who, spec, labels), lasting=False)
        with self._admission.obliging(admitted) as obligations:
            return oblige.new_sandbox(spec, obligations)

    def ahead(self, spec: SandboxSpec) -> SandboxSpec:
        """``spec`` as the policy has it built for an ordinary caller; as it is where that one may
        not have it: who may is asked when they come."""
        decision = self._admission.would(acts.creation(_ANYBODY, spec, {}))
        if not decision.allow:
            return spec
        try:
            return oblige.new_sandbox(spec, decision.obligations)
        except PolicyDenied:
            return spec

    def fork(self, who: Principal, handle: SandboxHandle, count: int, labels: Labels) -> None:
        self.operation(who, acts.FORK, handle, labels, count=count)

    def command(
        self, who: Principal, handle: SandboxHandle, request: ExecRequest, labels: Labels
    ) -> tuple[ExecRequest, Concluded]:
        admitted = self._admission.admit(acts.command(who, handle, request, labels))
        with self._admission.obliging(admitted) as obligations:
            oblige.existing_sandbox(handle.spec, handle.level, obligations)
        # By its tag it is found again when we have gone, and nobody waits for its end here.
        self._admission.begun(admitted, request.tag)
        return oblige.command(request, obligations), Ending(self._records, admitted, ran(handle))

    def adopted(
        self, who: Principal, handle: SandboxHandle, request: ExecRequest, id_: str, began: float
    ) -> Concluded:
        act = msgspec.structs.replace(acts.command(who, handle, request, {}), request=id_)
        decision = Decision(allow=True, reasons=("decided before the daemon was started again",))
        return Ending(self._records, Admitted(act, decision, began), ran(handle))

    def operation(
        self,
        who: Principal,
        name: str,
        handle: SandboxHandle,
        labels: Labels,
        **parameters: Any,
    ) -> None:
        """One on a sandbox that is there, or on its files. Raises Refused."""
        admitted = self._admission.admit(acts.operation(who, name, handle, labels, **parameters))
        with self._admission.obliging(admitted) as obligations:
            oblige.existing_sandbox(handle.spec, handle.level, obligations)


def ran(handle: SandboxHandle) -> Ran:
    return Ran(handle.id, handle.backend, handle.level.label, dict(handle.enforcement))
