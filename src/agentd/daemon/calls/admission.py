"""Whether something may happen, and the record of that it did: policy and audit around every act.

    admit     the bundle that the caller expects, the policy's decision, its approval; written down
    begun     what runs has begun

How it ended is ``records.Records``.

Anything that is in doubt is a refusal, and a refusal is written down as well.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from agentd.daemon.calls.act import Act, asked
from agentd.model.audit import Event, Kind
from agentd.model.decision import Asked, Decision
from agentd.model.errors import AgentdError, PolicyDenied, Undecided

_MAX_REASON = 500


class Policy(Protocol):
    @property
    def digest(self) -> str: ...
    def decide(self, asked: Asked) -> Decision: ...


class Log(Protocol):
    """Raises AuditError: then nothing may be done. It is on disk with the next that is waited for,
    or sooner."""

    def submit(
        self, event: Event, secrets: Iterable[str] = (), *, lazily: bool = False
    ) -> object: ...


class Approves(Protocol):
    def approve(self, act: Act, decision: Decision) -> None:
        """Waits until it is decided. Raises Refused where it is denied, or nobody decides."""


class Admitted(msgspec.Struct, frozen=True):
    act: Act
    decision: Decision
    began: float  # seconds since 1970


class Admission:
    """Thread-safe. Without a ``policy`` all that a principal's scopes let through is allowed."""

    def __init__(
        self,
        policy: Callable[[], Policy | None],
        log: Log,
        approvals: Approves | None = None,
        learn: Callable[[Asked], None] | None = None,
    ) -> None:
        """``learn`` is told every question, for a policy that is to be learned from them."""
        self._policy = policy
        self._log = log
        self._approvals = approvals
        self._learn = learn

    def admit(self, act: Act) -> Admitted:
        """Raises PolicyDenied, Undecided, AuditError, and what an approval ends with."""
        now = time.time()
        decision = self._decide(act, now)
        if not decision.allow:
            self._refuse(act, decision)
        self._write(Kind.ADMISSION, act, decision_fields(decision))
        if decision.obligations.approve:
            self._ask_for_approval(act, decision)
        return Admitted(act, decision, now)

    def begun(self, admitted: Admitted, **fields: Any) -> None:
        self._write(Kind.START, admitted.act, fields)

    def _decide(self, act: Act, now: float) -> Decision:
        policy = self._policy()
        if act.bundle and (policy is None or policy.digest != act.bundle):
            held = policy.digest if policy is not None else "none"
            reason = f"the caller expects the policy {act.bundle[:80]}, and {held} is in force"
            return Decision(allow=False, reasons=(reason,), bundle="" if policy is None else held)
        question = asked(act, now)
        if self._learn is not None:
            self._learn(question)
        if policy is None:
            return Decision(allow=True, reasons=("no policy is configured",))
        return policy.decide(question)

    def _refuse(self, act: Act, decision: Decision) -> None:
        why = "; ".join(decision.reasons)[:_MAX_REASON]
        fields = decision_fields(decision)
        if decision.undecided:
            self._write(Kind.UNDECIDED, act, fields)
            raise Undecided(
                f"the policy could not decide on {act.name}",
                cause=decision.undecided[:_MAX_REASON],
                remediation="see agentd policy explain; until it is mended nothing is allowed",
            )
        self._write(Kind.DENIAL, act, fields)
        raise PolicyDenied(
            f"the policy does not allow {act.who.name} to call {act.name}",
            cause=why,
            remediation="agentd policy explain says which rule decided",
        )

    def _ask_for_approval(self, act: Act, decision: Decision) -> None:
        if self._approvals is None:
            raise PolicyDenied(
                f"the policy wants {act.name} approved, and nobody here could",
                remediation="run agentd serve: it parks the request until somebody decides",
            )
        try:
            self._approvals.approve(act, decision)
        except AgentdError as error:
            self._write(Kind.DENIAL, act, {"reasons": [str(error)], "approval": error.code})
            raise

    def _write(self, kind: Kind, act: Act, fields: Mapping[str, Any]) -> None:
        # A refusal is the last that is heard of it.
        lazily = kind in (Kind.ADMISSION, Kind.START)
        self._log.submit(_event(kind, act, fields), secrets(act), lazily=lazily)


def decision_fields(decision: Decision) -> dict[str, Any]:
    fields: dict[str, Any] = {"bundle": decision.bundle, "reasons": decision.reasons}
    if decision.undecided:
        fields["undecided"] = decision.undecided
    else:
        obligations: dict[str, Any] = msgspec.to_builtins(decision.obligations)
        fields["obligations"] = obligations
    return fields


def _event(kind: Kind, act: Act, fields: Mapping[str, Any]) -> Event:
    more = {"signer": act.signer} if act.signer else {}
    return Event(
        kind=kind,
        principal=act.who.name,
        request=act.id,
        sandbox=act.place.id,
        capability=act.name,
        fields={**fields, **more},
    )


def secrets(act: Act) -> list[str]:
    """Values that must not be in the log, wherever they come up."""
    env = act.parameters.get("env")
    values = list(env.values()) if isinstance(env, Mapping) else []
    values += act.place.spec.env.values()
    return [value for value in values if isinstance(value, str) and value]
