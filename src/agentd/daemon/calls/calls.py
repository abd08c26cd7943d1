"""A call of a capability, from what was asked to the signed record of what came of it.

The same lines for every way in: REST, the SDK and the command line, with a daemon and without.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any, Protocol

import msgspec

from agentd.capability import schema
from agentd.capability.call import CallContext, Emit, perform
from agentd.capability.registry import Registry
from agentd.daemon.admission import oblige, records
from agentd.daemon.admission.acts import Act, Place
from agentd.daemon.admission.admission import Admission, outputs_of
from agentd.daemon.admission.gate import Gate, ran
from agentd.daemon.calls.inside import HandleInside, Nowhere
from agentd.model import context
from agentd.model.api import CallBody, CallView, SandboxBody, Time
from agentd.model.capability import About, Outcome
from agentd.model.decision import Obligations
from agentd.model.errors import InvalidInput, PolicyDenied, Refused
from agentd.model.principal import Principal
from agentd.model.result import Cause, CauseCode, Result, Timing, Usage
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.handle import SandboxHandle


class CallSandboxes(Protocol):
    """Finds and makes the sandboxes that calls run in: checks quotas, leases and owners."""

    def get(self, who: Principal, body: CallBody) -> tuple[SandboxHandle, Mapping[str, str]]:
        """Find ``body.sandbox``, and its labels. Raises NotFound, Forbidden, Conflict."""

    def plan(self, who: Principal, body: CallBody) -> tuple[SandboxSpec, Mapping[str, str]]:
        """Return the spec and labels of one to be made. Raises InvalidInput, Refused, Forbidden."""

    def run(
        self,
        who: Principal,
        handle: SandboxHandle,
        request: ExecRequest,
        stdin: bytes,
        emit: Emit | None,
        cancel: int,
        *,
        kept: list[str] | None = None,
    ) -> Result:
        """Run a command of a call to its end; what ``emit`` raises ends it and comes out here,
        and ``cancel`` readable kills it. With ``kept``, which gets its id, it stays to be looked
        at."""

    def made(
        self,
        who: Principal,
        spec: SandboxSpec,
        labels: Mapping[str, str],
        ttl: Time | None = None,
    ) -> AbstractContextManager[SandboxHandle]:
        """Make a sandbox, and end it with the block, or before where its lease does. Raises
        QuotaExceeded, Full, SandboxError."""


class Calls:
    """Calls capabilities. Thread-safe."""

    def __init__(self, registry: Registry, gate: Gate, sandboxes: CallSandboxes) -> None:
        self.registry = registry
        self._gate = gate
        self._sandboxes = sandboxes

    def call(
        self,
        who: Principal,
        body: CallBody,
        emit: Emit | None = None,
        *,
        via: str = "",
        cancel: int = -1,
    ) -> CallView:
        """Call a capability as ``who``, who is authenticated, by signature where there is one;
        ``emit`` gets what comes before the end; ``cancel`` is a descriptor that ends it once it is
        readable.

        Raises what refuses it, and what the capability fails with.
        """
        begun, kept = time.monotonic(), _kept(body)
        capability = self.registry.get(body.capability)
        about = capability.about
        parameters = schema.check(about, body.parameters)
        handle, act = self._act(who, about, parameters, body, via)
        admission = self._gate.open(act, cancel)
        most = admission.obligations.limits
        call = CallContext.of(
            about, parameters, request_id=act.request, emit=emit or _nowhere, most=most.timeout
        )
        with ExitStack() as stack:
            with admission.obliging() as obliged, _telling_least(about, obliged):
                place = stack.enter_context(self._place(who, admission, handle, body))
            if place is not None:
                admission.where = ran(place)
            admission.begin()
            inside: Any = Nowhere()
            if place is not None:
                run = partial(self._sandboxes.run, who, place, kept=kept)
                inside = HandleInside(place, run, cancel, most)
            setup = time.monotonic()
            with admission:
                outcome = perform(capability, call, inside)
                receipt = _ended(admission, outcome)
        view = _view(admission, outcome, _timing(begun, setup), receipt)
        return msgspec.structs.replace(view, commands=tuple(kept)) if kept else view

    def readmit(
        self,
        who: Principal,
        body: CallBody,
        place: Place | None,
        approved: frozenset[str] | None,
        *,
        via: str = "",
    ) -> None:
        """Raise what ``call`` would refuse it with now, for a repeat that gets its answer.
        ``place`` is of ``body.sandbox``."""
        about = self.registry.get(body.capability).about
        parameters = schema.check(about, body.parameters)
        made = place is None
        if place is None:
            place = self._new_place(who, about, body)
        else:
            _check_place(body)
        act = _act(who, about, parameters, body, place, via)
        with self._gate.reopen(act, approved).obliging() as obligations:
            if not about.needs.sandbox:
                _check_network(about, obligations)
            elif made:
                oblige.new_sandbox(place.spec, obligations)
                who.require("create")
            else:
                oblige.existing_sandbox(place.spec, place.level, obligations)

    def _new_place(self, who: Principal, about: About, body: CallBody) -> Place:
        spec, labels = self._sandboxes.plan(who, body)
        return Place.new(_strong_enough(spec, about), labels)

    def _act(
        self, who: Principal, about: About, parameters: Mapping[str, Any], body: CallBody, via: str
    ) -> tuple[SandboxHandle | None, Act]:
        handle = None
        if body.sandbox is not None:
            _check_place(body)
            handle, labels = self._sandboxes.get(who, body)
            place = Place.of(handle, labels)
        else:
            place = self._new_place(who, about, body)
        return handle, _act(who, about, parameters, body, place, via)

    def _place(
        self, who: Principal, admission: Admission, handle: SandboxHandle | None, body: CallBody
    ) -> AbstractContextManager[SandboxHandle | None]:
        """Return the sandbox that it runs in; none for what acts in the daemon itself."""
        about = self.registry.get(body.capability).about
        obligations, place = admission.obligations, admission.act.place
        if not about.needs.sandbox:
            _check_network(about, obligations)
            return nullcontext()
        if handle is not None:
            oblige.existing_sandbox(handle.spec, handle.level, obligations)
            _check_needs(handle, about)
            return nullcontext(handle)  # somebody else's: the call's end does not end it
        spec = oblige.new_sandbox(place.spec, obligations)
        return self._sandboxes.made(who, spec, place.labels, body.create.ttl)


def _kept(body: CallBody) -> list[str] | None:
    """Ids of commands that stay, of a call that asks for that. Raises InvalidInput."""
    if not body.keep:
        return None
    if body.sandbox is None:
        raise InvalidInput(
            "a command stays no longer than its sandbox, which would end with the call",
            remediation="name the sandbox to call it in, or leave out keep",
        )
    return []


def _ended(admission: Admission, outcome: Outcome) -> str:
    """Return the id of its receipt."""
    outputs = {"value": records.digest(msgspec.json.encode(outcome.value))}
    if outcome.end is None:
        return admission.done(outputs)
    return admission.end(outcome.end, {**outputs, **outputs_of(outcome.end)})


def _act(
    who: Principal,
    about: About,
    parameters: Mapping[str, Any],
    body: CallBody,
    place: Place,
    via: str,
) -> Act:
    return Act(
        who=who,
        name=about.name,
        parameters=parameters,
        place=place,
        needs=about.needs,
        request=context.current() or context.new_id(),
        signer=who.credential if who.via == "signed" else "",
        bundle=body.bundle or "",
        via=via,
        executes=True,
    )


def _check_place(body: CallBody) -> None:
    """Raises InvalidInput: what is asked for is had, or refused, and not left out in silence."""
    if body.create != SandboxBody():
        raise InvalidInput(
            f"sandbox {(body.sandbox or '')[:64]} is there, and create says how to make one",
            remediation="leave out one of the two",
        )


def _check_network(about: About, obligations: Obligations) -> None:
    """Check the network of a capability that acts in the daemon. Raises PolicyDenied."""
    if about.needs.network and obligations.no_network:
        raise PolicyDenied(f"the policy allows {about.name} no network", remediation="call another")


def _strong_enough(spec: SandboxSpec, about: About) -> SandboxSpec:
    """A sandbox that is made for a capability has the wall that it needs."""
    return msgspec.structs.replace(spec, isolation=max(spec.isolation, about.needs.level))


def _telling_least(about: About, obliged: Obligations) -> AbstractContextManager[None]:
    if obliged.level is not None and obliged.level > about.needs.level:
        return oblige.telling_least(obliged.level, "the policy")
    return oblige.telling_least(about.needs.level, about.name)


def _check_needs(handle: SandboxHandle, about: About) -> None:
    if handle.level < about.needs.level:
        raise Refused(
            f"{about.name} needs a wall of level {about.needs.level.label}",
            cause=f"sandbox {handle.id} has {handle.level.label}",
            remediation="call it in another sandbox, or without one",
        )


def _timing(begun: float, setup: float) -> Timing:
    now = time.monotonic()
    return Timing((setup - begun) * 1000, (now - setup) * 1000, (now - begun) * 1000)


def _view(admission: Admission, outcome: Outcome, timing: Timing, receipt: str) -> CallView:
    act, where, end = admission.act, admission.where, outcome.end
    return CallView(
        request_id=act.request,
        capability=act.name,
        status="ok" if end is None else end.status,
        value=dict(outcome.value),
        cause=Cause.of(CauseCode.EXITED, "done") if end is None else end.cause,
        decision=admission.decision,
        usage=Usage() if end is None else end.usage,
        timing=timing,
        sandbox=where.info(),
        enforcement=dict(where.enforcement),
        receipt=receipt,
    )


def _nowhere(kind: str, data: bytes) -> None:
    """Drop it: nobody follows the call."""
