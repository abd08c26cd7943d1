"""A request that waits until somebody allows it, and the record of who did."""

import select
from typing import Any, Protocol

import msgspec

from agentd.daemon.admission.acts import Act
from agentd.daemon.admission.approvals import (
    NEW_SANDBOX,
    SANDBOX_ENDED,
    Approvals,
    sandbox_of,
)
from agentd.daemon.admission.records import decision_fields
from agentd.model import context
from agentd.model.api import ApprovalView
from agentd.model.audit import Event, Kind
from agentd.model.decision import Decision
from agentd.model.errors import AgentdError, BackendLost, Refused


class ParkedLog(Protocol):
    def submit(self, event: Event) -> object: ...


class ApprovalDenied(Refused):
    code = "approval_denied"


class ApprovalExpired(Refused):
    code = "approval_expired"


class ApprovalWithdrawn(Refused):
    """Whoever followed the call has gone: it is not done behind their back."""

    code = "cancelled"


class ApprovalRecalled(Refused):
    code = "approval_withdrawn"


_LOOK_SECONDS = 1.0  # how often it is seen that whoever asked has gone


class Parked:
    """Has requests approved. There is no log at first: it is opened after the store that approvals
    lie in."""

    def __init__(self, approvals: Approvals) -> None:
        self._approvals = approvals
        self._log: ParkedLog | None = None

    def begin(self, log: ParkedLog) -> None:
        """Write to ``log`` from now on, and first what became of what a killed daemon had asked."""
        self._log = log
        for gone in self._approvals.lapsed:
            capability = str(gone.asked.get("capability"))
            self._write(
                Kind.APPROVAL_EXPIRED,
                gone.principal,
                gone.request,
                sandbox_of(gone.asked),
                capability,
                approval=gone.id,
            )

    def approve(self, act: Act, decision: Decision, cancel: int = -1) -> None:
        """Wait until it is approved. Raises ApprovalDenied, ApprovalExpired, ApprovalWithdrawn,
        Full, ..."""
        asked = self._approvals.ask(_summary(act, decision), act.who, act.id)
        self._note(Kind.APPROVAL_ASKED, act, approval=asked.id)
        gone: ApprovalWithdrawn | None = None
        try:
            self._wait(asked.id, cancel)
        except ApprovalWithdrawn as error:  # somebody may have decided all the same
            gone = error
        finally:
            self._approvals.withdraw(asked.id)
        found = self._approvals.wait(asked.id)
        allowed = found.state == "approved"
        if allowed or found.state == "denied":
            fields = {"approval": found.id, "allowed": allowed, "by": found.decided_by}
            self._note(Kind.APPROVAL_DECIDED, act, **fields)
        if gone is not None:
            raise gone
        if found.state == "withdrawn":
            raise _withdrawn(act, found)
        if allowed:
            if (recording := context.recorded()) is not None:
                recording.approved.add(act.name)
            return
        if found.state == "denied":
            raise ApprovalDenied(
                f"{act.name} was not approved",
                cause=f"{found.decided_by}: {found.note}" if found.note else f"{found.decided_by}",
                remediation="ask who decided",
            )
        self._note(Kind.APPROVAL_EXPIRED, act, approval=found.id)
        raise ApprovalExpired(
            f"nobody approved {act.name} in time",
            cause=found.note,
            remediation="ask a holder of the scope approve to look at agentd approval ls, and ask "
            "again",
        )

    def _wait(self, id_: str, cancel: int) -> None:
        """Wait until it has ended. Raises ApprovalWithdrawn where who asked has gone, also if it is
        approved by now."""
        client, told = context.client(), select.poll()
        if cancel >= 0:
            told.register(cancel, select.POLLIN)
        with client.telling(lambda: self._approvals.look(id_)):
            while True:
                found = self._approvals.wait(id_, _LOOK_SECONDS if cancel >= 0 else None)
                if client.is_set or (cancel >= 0 and told.poll(0)):
                    raise ApprovalWithdrawn("whoever asked has gone before it was decided")
                if found.state != "pending":
                    return

    def _note(self, kind: Kind, act: Act, **fields: Any) -> None:
        self._write(kind, act.who.name, act.id, act.place.id, act.name, **fields)

    def _write(
        self, kind: Kind, who: str, request: str, sandbox: str, capability: str, **fields: Any
    ) -> None:
        if self._log is not None:
            self._log.submit(
                Event(
                    kind=kind,
                    principal=who,
                    request=request,
                    sandbox=sandbox,
                    capability=capability,
                    fields=fields,
                )
            )


def _withdrawn(act: Act, found: ApprovalView) -> AgentdError:
    if found.note == SANDBOX_ENDED:
        return BackendLost(
            f"sandbox {act.place.id} ended before {act.name} was approved",
            remediation="create a new sandbox",
        )
    return ApprovalRecalled(
        f"the request for {act.name} was withdrawn", cause=found.note, remediation="ask again"
    )


def _summary(act: Act, decision: Decision) -> dict[str, Any]:
    """Say all that is decided on, for a person to read; no value of an environment."""
    parameters: dict[str, Any] = msgspec.to_builtins(dict(act.parameters))
    if isinstance(parameters.get("env"), dict):
        parameters["env"] = sorted(parameters["env"])
    place = act.place
    return {
        "capability": act.name,
        "parameters": parameters,
        "sandbox": place.id or NEW_SANDBOX,
        "level": place.level.label,
        "net": place.spec.net,
        "egress": list(place.spec.egress),
        "packages": list(place.spec.packages),
        "policy": decision_fields(decision),
    }
