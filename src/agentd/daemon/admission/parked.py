"""A request that waits until somebody allows it, and the record of who did."""

import select
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from agentd.daemon.admission.acts import Act
from agentd.daemon.admission.approvals import DAEMON_ENDS, NEW_SANDBOX, SANDBOX_ENDED, Approvals
from agentd.daemon.admission.records import decision_fields
from agentd.daemon.commands.ends import DESTROYED, IDLE_OVER, LEASE_OVER
from agentd.daemon.service.quotas import about_to_end
from agentd.model import context
from agentd.model.api import ApprovalView
from agentd.model.audit import Event, Kind, Record
from agentd.model.decision import Decision
from agentd.model.errors import AgentdError, BackendLost, Refused
from agentd.model.result import Cause
from agentd.sandbox.ending import OUT_OF_MEMORY
from agentd.sandbox.handle import ended


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


# What is noted of those that waited, by what ended their sandbox; None: its wall did.
_ENDS = {
    SANDBOX_ENDED: DESTROYED,
    f"{SANDBOX_ENDED} with its lease": LEASE_OVER,
    f"{SANDBOX_ENDED} for being idle": IDLE_OVER,
    f"{SANDBOX_ENDED} out of memory": OUT_OF_MEMORY,
    f"{SANDBOX_ENDED} by itself": None,
}
_NOTES = {why: note for note, why in _ENDS.items()}


def ended_note(why: Cause | None) -> str:
    """Return what is noted of a request whose sandbox has ended."""
    return _NOTES.get(why, _NOTES[None])  # a wall of a third party may end as no other does


_LOOK_SECONDS = 1.0  # how often it is seen that whoever asked has gone


class Parked:
    """Has requests approved. ``log`` is set once there is one: it is opened after the store that
    approvals lie in."""

    def __init__(self, approvals: Approvals) -> None:
        self._approvals = approvals
        self.log: ParkedLog | None = None

    def end(self, asked: Iterable[Record]) -> None:
        """Write down what became of what daemons before ``asked``, and were killed before they
        wrote it. Raises AuditError."""
        for record in asked:
            found = self._approvals.find(str(record.fields.get("approval", "")))
            if found is not None and found.state != "withdrawn":
                about = record.principal, record.request, record.sandbox, record.capability
                self._write(*_outcome(found), *about)

    def approve(self, act: Act, decision: Decision, cancel: int = -1) -> None:
        """Wait until it is approved, or ``cancel`` is readable. Raises ApprovalDenied,
        ApprovalExpired, ApprovalWithdrawn, Full, ..."""
        asked = self._approvals.ask(_summary(act, decision), act.who, act.request)
        gone: ApprovalWithdrawn | None = None
        try:
            self._note(act, Kind.APPROVAL_ASKED, {"approval": asked.id})
            self._wait(asked.id, cancel)
        except ApprovalWithdrawn as error:  # somebody may have decided all the same
            gone = error
        finally:
            self._approvals.withdraw(asked.id)
        found = self._approvals.wait(asked.id)
        allowed = found.state == "approved"
        if allowed or found.state == "denied":
            self._note(act, *_outcome(found))
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
        self._note(act, *_outcome(found))
        if found.note == DAEMON_ENDS:
            raise about_to_end()
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

    def _note(self, act: Act, kind: Kind, fields: Mapping[str, Any]) -> None:
        self._write(kind, fields, act.who.name, act.request, act.place.id, act.name)

    def _write(
        self,
        kind: Kind,
        fields: Mapping[str, Any],
        who: str,
        request: str,
        sandbox: str,
        capability: str,
    ) -> None:
        if self.log is not None:
            self.log.submit(
                Event(
                    kind=kind,
                    principal=who,
                    request=request,
                    sandbox=sandbox,
                    capability=capability,
                    fields=fields,
                )
            )


def _outcome(found: ApprovalView) -> tuple[Kind, dict[str, Any]]:
    """Return what the log has of one that was decided, or expired."""
    if found.state == "expired":
        return Kind.APPROVAL_EXPIRED, {"approval": found.id}
    allowed = found.state == "approved"
    about = {"approval": found.id, "allowed": allowed, "by": found.decided_by}
    return Kind.APPROVAL_DECIDED, about


def _withdrawn(act: Act, found: ApprovalView) -> AgentdError:
    if found.note in _ENDS:
        text, why = (
            f"sandbox {act.place.id} ended before {act.name} was approved",
            _ENDS[found.note],
        )
        if why is None:
            return BackendLost(text, remediation="create a new sandbox")
        return ended(why, text, found.note)
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
