"""Decides whether an act may happen: the expected bundle, the policy, its approval.

Anything that is in doubt is a refusal, and a refusal is written down as well.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from agentd.daemon.admission import acts, oblige
from agentd.daemon.admission.acts import Act, Place, asked
from agentd.daemon.admission.admission import Admission
from agentd.daemon.admission.records import Ran, Records, decision_fields
from agentd.model.audit import Kind
from agentd.model.decision import Asked, Decision, Obligations
from agentd.model.errors import AgentdError, PolicyDenied, Refused, Undecided
from agentd.model.principal import ORDINARY, Principal
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.handle import SandboxHandle

if TYPE_CHECKING:
    from agentd.daemon.admission.parked import Parked

ANSWERS = ("allow", "deny", "undecided")
NO_POLICY = Decision(allow=True, reasons=("no policy is configured",))
#: An ``ask`` that nobody is asked about would be an allow.
_SOMEBODY = Decision(
    allow=True,
    reasons=("no policy is configured, and the rule wants somebody asked",),
    obligations=Obligations(approve=True),
)
_BEFORE = Decision(allow=True, reasons=("decided before the daemon was started again",))
_ANYBODY = Principal("anybody", frozenset(ORDINARY), "key")
_MAX_REASON = 500

Labels = Mapping[str, str]


class DecidingPolicy(Protocol):
    @property
    def digest(self) -> str: ...
    def decide(self, asked: Asked) -> Decision: ...


class Gate:
    """Admits acts. Thread-safe. Without a ``policy`` all that a principal's scopes let through is
    allowed."""

    def __init__(
        self,
        policy: DecidingPolicy | None,
        records: Records,
        approvals: "Parked | None" = None,
        learn: Callable[[Asked], None] | None = None,
    ) -> None:
        """``learn`` is told every question, for a policy that is to be learned from them."""
        self.policy = policy  # a reload sets another
        self._records = records
        self._approvals = approvals
        self._learn = learn
        self._count_guard = threading.Lock()
        self._decisions = dict.fromkeys(ANSWERS, 0)

    def open(
        self, act: Act, cancel: int = -1, *, lasting: bool = True, also: Sequence[Act] = ()
    ) -> Admission:
        """Decide, and wait for an approval where one is wanted; ``cancel`` readable ends that wait.
        What is not ``lasting`` a loss of power undoes: its record is written, and not waited for on
        the disk. ``also`` is what the one operation does beside ``act``: allowed with it, or
        nothing is.

        Raises PolicyDenied, Undecided, AuditError, and what an approval ends with.
        """
        now, also = time.time(), acts.beside(act, also)
        decision, others = self._decide(act, now), [self._decide(one, now) for one in also]
        whole = _of_all(decision, others) if others else decision
        self._records.admitted(act, whole, lasting=lasting)
        if whole.obligations.approve:
            for one, decided in _each(act, decision, also, others):
                if decided.obligations.approve:
                    self._ask_for_approval(one, decided, cancel)
        return Admission(self._records, act, whole, now)

    def would(self, act: Act) -> Decision:
        """Decide on an act that nobody asked for; neither counted nor written down."""
        policy = self.policy
        return NO_POLICY if policy is None else policy.decide(asked(act, time.time()))

    def reopen(
        self, act: Act, approved: frozenset[str] | None, also: Sequence[Act] = ()
    ) -> Admission:
        """Decide as ``open`` for a repeat that gets a recorded answer: nothing is done. What
        somebody ``approved`` for the first request they approved for its repeats; None is all."""
        now, also = time.time(), acts.beside(act, also)
        decision, others = self._decide(act, now), [self._decide(one, now) for one in also]
        for one, decided in _each(act, decision, also, others):
            known = approved is None or one.name in approved
            if decided.obligations.approve and not known:
                self._ask_for_approval(one, decided, -1)
        decision = _of_all(decision, others)
        self._records.repeated(act, decision_fields(decision))
        return Admission(self._records, act, decision, now)

    def adopt(
        self,
        who: Principal,
        handle: SandboxHandle,
        request: ExecRequest,
        id_: str,
        began: float,
        *,
        ended: bool,
    ) -> Admission:
        """Return the admission that the daemon before gave a command, as the request ``id_``."""
        act = msgspec.structs.replace(acts.command(who, Place.of(handle), request), request=id_)
        return Admission(self._records, act, _BEFORE, began, ran(handle), ended=ended)

    def sandbox(
        self, who: Principal, spec: SandboxSpec, labels: Labels, *, snapshot: str = ""
    ) -> SandboxSpec:
        """Return a new one, or one of the ``snapshot``, as it may be built. Raises Refused."""
        admission = self.open(acts.creation(who, spec, labels, snapshot), lasting=False)
        with admission.obliging() as obligations:
            within = oblige.restored_sandbox if snapshot else oblige.new_sandbox
            return within(spec, obligations)

    def ahead(self, spec: SandboxSpec) -> SandboxSpec:
        """Return ``spec`` as the policy has it built for an ordinary caller; as it is where that
        one may not have it: who may is asked when they come."""
        decision = self.would(acts.creation(_ANYBODY, spec, {}))
        if not decision.allow:
            return spec
        try:
            return oblige.new_sandbox(spec, decision.obligations)
        except PolicyDenied:
            return spec

    def command(
        self, who: Principal, handle: SandboxHandle, request: ExecRequest, labels: Labels
    ) -> tuple[ExecRequest, Admission]:
        """Return the command as it may run, and its admission, begun. Raises Refused."""
        admission = self.open(acts.command(who, Place.of(handle, labels), request))
        admission.within(handle)
        admission.where = ran(handle)
        # By its tag it is found again when we have gone, and nobody waits for its end here.
        admission.begin(request.tag)
        return oblige.command(request, admission.decision.obligations), admission

    def operation(self, act: Act, handle: SandboxHandle, also: Sequence[Act] = ()) -> Admission:
        """Admit an act on a sandbox that is there, or on its files; not begun. Raises Refused."""
        admission = self.open(act, lasting=act.lasts, also=also)
        admission.within(handle)
        admission.where = ran(handle)
        admission.handle = handle
        return admission

    def fork(self, who: Principal, handle: SandboxHandle, count: int, labels: Labels) -> None:
        """Admit a fork. Raises Refused."""
        self.operation(acts.operation(who, acts.FORK, handle, labels, count=count), handle)

    def decisions(self) -> dict[str, int]:
        """Return how many there were of each of ANSWERS."""
        with self._count_guard:
            return dict(self._decisions)

    def _decide(self, act: Act, now: float) -> Decision:
        """Raises Refused, written down, for what is not allowed."""
        decision = self._answer(act, now)
        if act.bundle and decision.bundle != act.bundle:  # another one since it was looked at
            decision = _another(act, decision.bundle)
        answer = "allow" if decision.allow else "undecided" if decision.undecided else "deny"
        with self._count_guard:
            self._decisions[answer] += 1
        if not decision.allow:
            self._refuse(act, decision)
        return decision

    def _answer(self, act: Act, now: float) -> Decision:
        policy = self.policy
        if act.bundle and (policy is None or policy.digest != act.bundle):
            return _another(act, "" if policy is None else policy.digest)
        if policy is None and self._learn is None:
            return _without_policy(act)
        question = asked(act, now)
        if self._learn is not None:
            self._learn(question)
        return _without_policy(act) if policy is None else policy.decide(question)

    def _refuse(self, act: Act, decision: Decision) -> None:
        fields: dict[str, Any] = decision_fields(decision)
        if decision.undecided:
            self._records.write(Kind.UNDECIDED, act, fields)
            raise Undecided(
                f"the policy could not decide on {act.name}",
                cause=decision.undecided[:_MAX_REASON],
                remediation="see agentd policy explain; until it is fixed nothing is allowed",
            )
        self._records.write(Kind.DENIAL, act, fields)
        raise PolicyDenied(
            f"the policy does not allow {act.who.name} to call {act.name}",
            cause="; ".join(decision.reasons)[:_MAX_REASON],
            remediation="agentd policy explain says which rule decided",
        )

    def _ask_for_approval(self, act: Act, decision: Decision, cancel: int) -> None:
        try:
            if self._approvals is None:
                raise PolicyDenied(
                    f"the policy wants {act.name} approved, and there is no approver here",
                    remediation="run agentd serve: it parks the request until an approver decides",
                )
            self._approvals.approve(act, decision, cancel)
        except AgentdError as error:
            fields = {"reasons": [str(error)], "approval": error.code}
            self._records.write(Kind.DENIAL, act, fields)
            if isinstance(error, Refused):
                error.is_recorded = True
            raise


def _without_policy(act: Act) -> Decision:
    return _SOMEBODY if act.name == acts.CONNECT else NO_POLICY


def ran(handle: SandboxHandle) -> Ran:
    return Ran(handle.id, handle.backend, handle.level.label, handle.enforcement)


def _each(
    act: Act, decision: Decision, also: Sequence[Act], others: Sequence[Decision]
) -> Iterator[tuple[Act, Decision]]:
    """Each with its decision, for approvals: who approves of a sandbox that has packages approves
    of fetching these."""
    yield act, decision
    for one, decided in zip(also, others, strict=True):
        fetches = bool(one.place.spec.packages) and decision.obligations.approve
        if not fetches:
            yield one, decided


def _of_all(decision: Decision, others: Sequence[Decision]) -> Decision:
    """Join decisions into one that obliges to what each of them does."""
    for other in others:
        decision = msgspec.structs.replace(
            decision,
            reasons=tuple(dict.fromkeys((*decision.reasons, *other.reasons))),
            obligations=oblige.both(decision.obligations, other.obligations),
        )
    return decision


def _another(act: Act, held: str) -> Decision:
    reason = f"the caller expects the policy {act.bundle[:80]}, and {held or 'none'} is in force"
    return Decision(allow=False, reasons=(reason,), bundle=held)
