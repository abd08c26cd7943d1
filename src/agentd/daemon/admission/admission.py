"""Whether something may happen, and the record of that it did: policy and audit around every act.

    admit     the bundle that the caller expects, the policy's decision, its approval; written down
    begun     what runs has begun

How it ended is ``records.Records``.

Anything that is in doubt is a refusal, and a refusal is written down as well.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from agentd.daemon.admission.act import Act, asked
from agentd.model.audit import Event, Kind
from agentd.model.decision import Asked, Decision, Obligations
from agentd.model.errors import AgentdError, PolicyDenied, Refused, Undecided
from agentd.model.redact import Redactor

if TYPE_CHECKING:
    from concurrent.futures import Future

    from agentd.model.audit import Position

ANSWERS = ("allow", "deny", "undecided")
NO_POLICY = Decision(allow=True, reasons=("no policy is configured",))
_MAX_REASON = 500


class Policy(Protocol):
    @property
    def digest(self) -> str: ...
    def decide(self, asked: Asked) -> Decision: ...


class Log(Protocol):
    """Raises AuditError: then nothing may be done. It is on disk with the next that is waited for,
    or sooner."""

    def submit(self, event: Event, *, lazily: bool = False) -> "Future[Position]": ...
    def append(self, event: Event, *, synced: bool = True) -> object:
        """As ``submit``, and on disk when it returns; what was submitted before is, too. Without
        ``synced`` all that is written, and on disk soon."""


class Approves(Protocol):
    def approve(self, act: Act, decision: Decision, cancel: int = -1) -> None:
        """Waits until it is decided, or ``cancel`` is readable. Raises Refused where it is denied,
        or nobody decides."""


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
        denied: Callable[[Event], object] | None = None,
    ) -> None:
        """``learn`` is told every question, for a policy that is to be learned from them;
        ``denied`` writes refusals, where they are bounded."""
        self._denied = denied or log.submit
        self._policy = policy
        self._log = log
        self._approvals = approvals
        self._learn = learn
        self._count_guard = threading.Lock()
        self._decisions = dict.fromkeys(ANSWERS, 0)

    def admit(self, act: Act, cancel: int = -1, *, lasting: bool = True) -> Admitted:
        """``cancel`` is a descriptor: readable, nobody waits any more for an approval. What is not
        ``lasting`` a loss of power undoes: its record is written, and not waited for on the disk.

        Raises PolicyDenied, Undecided, AuditError, and what an approval ends with.
        """
        now = time.time()
        decision = self._decide(act, now)
        if act.bundle and decision.bundle != act.bundle:  # another one since it was looked at
            decision = _another(act, decision.bundle)
        self._count(decision)
        if not decision.allow:
            self._refuse(act, decision)
        self._write_admission(act, decision_fields(decision), lasting)
        if decision.obligations.approve:
            self._ask_for_approval(act, decision, cancel)
        return Admitted(act, decision, now)

    def would(self, act: Act) -> Decision:
        """What is decided on an act that nobody asks for; neither counted nor written down."""
        policy = self._policy()
        return NO_POLICY if policy is None else policy.decide(asked(act, time.time()))

    def readmit(self, act: Act, approved: frozenset[str] | None) -> Admitted:
        """``admit`` for a repeat that gets a recorded answer: nothing is done. What somebody
        ``approved`` for the first request they approved for its repeats; None is all."""
        now = time.time()
        decision = self._decide(act, now)
        if act.bundle and decision.bundle != act.bundle:
            decision = _another(act, decision.bundle)
        self._count(decision)
        if not decision.allow:
            self._refuse(act, decision)
        if decision.obligations.approve and approved is not None and act.name not in approved:
            self._ask_for_approval(act, decision, -1)
        self._log.append(_event(Kind.ADMISSION, act, {**decision_fields(decision), "repeat": True}))
        return Admitted(act, decision, now)

    def decisions(self) -> dict[str, int]:
        """How many there were of each of ANSWERS."""
        with self._count_guard:
            return dict(self._decisions)

    @contextmanager
    def obliging(self, admitted: Admitted) -> Iterator[Obligations]:
        """What must hold; what is refused on its account within the block is written down."""
        try:
            yield admitted.decision.obligations
        except Refused as error:
            self._write(Kind.DENIAL, admitted.act, {"reasons": [str(error)], "code": error.code})
            raise

    def begun(self, admitted: Admitted, process: str | None = None) -> None:
        """``process``: the id of one whose begin is acknowledged, and whose end nobody waits for.
        It is synced; should the daemon be killed now, the next one finds it by that."""
        fields = {} if process is None else {"process": process}
        self._write(Kind.START, admitted.act, fields, synced=process is not None)

    def _decide(self, act: Act, now: float) -> Decision:
        policy = self._policy()
        if act.bundle and (policy is None or policy.digest != act.bundle):
            return _another(act, "" if policy is None else policy.digest)
        question = asked(act, now)
        if self._learn is not None:
            self._learn(question)
        if policy is None:
            return NO_POLICY
        return policy.decide(question)

    def _count(self, decision: Decision) -> None:
        answer = "allow" if decision.allow else "undecided" if decision.undecided else "deny"
        with self._count_guard:
            self._decisions[answer] += 1

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

    def _ask_for_approval(self, act: Act, decision: Decision, cancel: int) -> None:
        try:
            if self._approvals is None:
                raise PolicyDenied(
                    f"the policy wants {act.name} approved, and nobody here could",
                    remediation="run agentd serve: it parks the request until somebody decides",
                )
            self._approvals.approve(act, decision, cancel)
        except AgentdError as error:
            self._write(Kind.DENIAL, act, {"reasons": [str(error)], "approval": error.code})
            raise

    def _write_admission(self, act: Act, fields: Mapping[str, Any], lasting: bool) -> None:
        # What has an end of its own is on disk with that; of the rest this is the only record.
        if act.executes:
            self._write(Kind.ADMISSION, act, fields)
        else:
            self._log.append(_event(Kind.ADMISSION, act, fields), synced=lasting)

    def _write(
        self, kind: Kind, act: Act, fields: Mapping[str, Any], *, synced: bool = False
    ) -> None:
        event = _event(kind, act, fields)
        if synced:
            self._log.append(event)
            return
        if kind in (Kind.DENIAL, Kind.UNDECIDED):
            self._denied(event)
        else:
            self._log.submit(event, lazily=kind in (Kind.ADMISSION, Kind.START))


def _another(act: Act, held: str) -> Decision:
    reason = f"the caller expects the policy {act.bundle[:80]}, and {held or 'none'} is in force"
    return Decision(allow=False, reasons=(reason,), bundle=held)


def _without(hidden: list[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Looked for in what others wrote alone: nobody hides a decision by calling it a secret."""
    hide = Redactor(hidden).text
    found = dict(fields)
    if "reasons" in found:
        found["reasons"] = [hide(reason) for reason in found["reasons"]]
    if "undecided" in found:
        found["undecided"] = hide(found["undecided"])
    return found


def decision_fields(decision: Decision) -> dict[str, Any]:
    fields: dict[str, Any] = {"bundle": decision.bundle, "reasons": decision.reasons}
    if decision.undecided:
        fields["undecided"] = decision.undecided
    else:
        obligations: dict[str, Any] = msgspec.to_builtins(decision.obligations)
        fields["obligations"] = obligations
    return fields


def _event(kind: Kind, act: Act, fields: Mapping[str, Any]) -> Event:
    hidden = secrets(act)
    more = {"signer": act.signer} if act.signer else {}
    return Event(
        kind=kind,
        principal=act.who.name,
        request=act.id,
        sandbox=act.place.id,
        capability=act.name,
        fields={**(_without(hidden, fields) if hidden else fields), **more},
    )


def secrets(act: Act) -> list[str]:
    """Values that must not be in the log, wherever they come up."""
    env = act.parameters.get("env")
    values = list(env.values()) if isinstance(env, Mapping) else []
    values += act.place.spec.env.values()
    return [value for value in values if isinstance(value, str) and value]
