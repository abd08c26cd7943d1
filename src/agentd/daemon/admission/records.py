"""The records of an operation in the audit log, and the receipt that chains to that of its end."""

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from agentd.audit import receipt, record
from agentd.audit.receipt import Execution, clean
from agentd.daemon.admission.acts import Act
from agentd.model.audit import Event, Kind
from agentd.model.decision import Decision
from agentd.model.redact import Redactor

if TYPE_CHECKING:
    from agentd.audit.issuing import AtOnce


class RecordLog(receipt.ReceiptLog, Protocol):
    """A log whose errors (AuditError) refuse the act. A submitted record is on disk with the next
    one that is waited for, or sooner."""

    def submit(self, event: Any, *, lazily: bool = False) -> object: ...
    def append(self, event: Any, *, synced: bool = True) -> Any:
        """As ``submit``, and on disk when it returns; what was submitted before is, too. Without
        ``synced`` all that is written, and on disk soon."""


class Records:
    """Thread-safe. Each method raises AuditError where nothing can be written."""

    def __init__(
        self, log: RecordLog, receipts: "AtOnce", denied: Callable[[Event], object] | None = None
    ) -> None:
        """``denied`` writes refusals, where they are bounded."""
        self._log = log
        self._receipts = receipts
        self._denied = denied or log.submit

    def admitted(self, act: Act, decision: Decision, *, lasting: bool) -> None:
        hidden = secrets(act)
        plain = {} if hidden else plain_fields(decision)
        event = _event(Kind.ADMISSION, act, plain or decision_fields(decision), hidden)
        # What has an END that is waited for is on disk with that; nobody waits for a look.
        if not ((act.executes and act.receipt) or not (act.receipt or lasting)):
            self._log.append(event, synced=lasting)
        elif hidden or act.signer:
            self._log.submit(event, lazily=True)
        else:
            made = record.known(event, plain, time.time())
            self._log.submit(made, lazily=True)

    def repeated(self, act: Act, fields: Mapping[str, Any]) -> None:
        """Synced: it is all that is written of a repeat."""
        self._log.append(_event(Kind.ADMISSION, act, {**fields, "repeat": True}, secrets(act)))

    def write(
        self,
        kind: Kind,
        act: Act,
        fields: Mapping[str, Any],
        *,
        synced: bool = False,
        written: bool = False,
    ) -> None:
        event = _event(kind, act, fields, secrets(act))
        if synced or written:
            self._log.append(event, synced=synced)
        elif kind in (Kind.DENIAL, Kind.UNDECIDED):
            self._denied(event)
        else:
            self._log.submit(event, lazily=True)

    def end(self, act: Act, execution: Execution) -> str:
        """Returns the receipt's id, the request's. The record is on disk when it returns; where
        ``act`` has no receipt it is not waited for, and says how it ended alone."""
        hidden = secrets(act)
        if act.receipt:
            self._receipts.keep(receipt.chain(self._log, execution, hidden))
        else:
            self._log.submit(_short_end(clean(execution, hidden)), lazily=True)
        return execution.request

    def interrupted(self, execution: Execution, *, has_receipt: bool) -> None:
        """Write the END of an act that a previous daemon began."""
        if has_receipt:
            self._receipts.keep(receipt.chain(self._log, execution))
        else:
            self._log.append(_short_end(clean(execution)))

    def get(self, id_: str) -> bytes | None:
        return self._receipts.get(id_)


@lru_cache(256)
def plain_fields(decision: Decision) -> Mapping[str, Any]:
    """Return the fields of a decision without secrets; the same one answers many requests."""
    return Redactor().fields(decision_fields(decision))


def decision_fields(decision: Decision) -> dict[str, Any]:
    fields: dict[str, Any] = {"bundle": decision.bundle, "reasons": decision.reasons}
    if decision.undecided:
        fields["undecided"] = decision.undecided
    else:
        obligations: dict[str, Any] = msgspec.to_builtins(decision.obligations)
        fields["obligations"] = obligations
    return fields


def secrets(act: Act) -> list[str]:
    """Values that must not be in the log, wherever they come up."""
    env = act.parameters.get("env")
    values = list(env.values()) if isinstance(env, Mapping) else []
    values += act.place.spec.env.values()
    return [value for value in values if isinstance(value, str) and value]


def _short_end(known: Execution) -> Event:
    """An END that says how and when; without the rest it has no receipt, now or later."""
    return Event(
        kind=Kind.END,
        principal=known.principal,
        request=known.request,
        sandbox=known.sandbox,
        capability=known.capability,
        fields={
            "cause": msgspec.to_builtins(known.cause),
            "started": known.started,
            "ended": known.ended,
        },
    )


def _event(kind: Kind, act: Act, fields: Mapping[str, Any], hidden: list[str]) -> Event:
    more = {"signer": act.signer} if act.signer else {}
    return Event(
        kind=kind,
        principal=act.who.name,
        request=act.request,
        sandbox=act.place.id,
        capability=act.name,
        fields={**(_without(hidden, fields) if hidden else fields), **more},
    )


def _without(hidden: list[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Looked for in what others wrote alone: nobody hides a decision by calling it a secret."""
    hide = Redactor(hidden).text
    found = dict(fields)
    if "reasons" in found:
        found["reasons"] = [hide(reason) for reason in found["reasons"]]
    if "undecided" in found:
        found["undecided"] = hide(found["undecided"])
    return found
