"""The records of an operation in the audit log, and the receipt that chains to that of its end.

Both tell of its execution, made here of the act, the decision and the outcome.
"""

import contextlib
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from agentd.audit import receipt, record
from agentd.audit.receipt import Decided, Execution, clean
from agentd.daemon.admission.acts import Act
from agentd.daemon.commands.ends import SHUT_DOWN, cause_of
from agentd.model.audit import Event, Kind
from agentd.model.canonical import canonical
from agentd.model.decision import Decision
from agentd.model.enforcement import Control
from agentd.model.errors import AgentdError
from agentd.model.redact import Redactor
from agentd.model.result import Cause, CauseCode, Result, SandboxInfo, Usage

if TYPE_CHECKING:
    from agentd.audit.issuing import AtOnce
    from agentd.daemon.admission.admission import Admission


class RecordLog(receipt.ReceiptLog, Protocol):
    """A log whose errors (AuditError) refuse the act. A submitted record is on disk with the next
    one that is waited for, or sooner."""

    def submit(self, event: Any, *, lazily: bool = False) -> object: ...
    def append(self, event: Any, *, synced: bool = True) -> Any:
        """Write it; it is on disk when this returns, and what was submitted before is, too. Without
        ``synced`` all that is written, and on disk soon."""


class Records:
    """Writes them. Thread-safe. Each method raises AuditError where nothing can be written."""

    def __init__(
        self, log: RecordLog, receipts: "AtOnce", denied: Callable[[Event], object] | None = None
    ) -> None:
        """``denied`` writes refusals, where they are bounded."""
        self._log = log
        self._receipts = receipts
        self._denied = denied or log.submit
        self.shuts_down = False  # the daemon does, and cuts off what still goes on

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
        """Write it, synced: it is all that is written of a repeat."""
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
        """Write the END; return the receipt's id, the request's. The record is on disk when this
        returns; where ``act`` has no receipt it is not waited for, and says how it ended alone."""
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
    """Return the values that must not be in the log, wherever they come up."""
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


Digests = Mapping[str, str]
NO_OUTPUTS: Digests = {}


def of_result(
    admission: "Admission", result: Result, outputs: Digests, input_digest: str = ""
) -> Execution:
    """Return the execution of a command, or of a call that a command did. ``input_digest`` is of
    what it was given to read beside the act's parameters."""
    read = {"input_digest": input_digest} if input_digest else {}
    return _execution(
        admission,
        outputs,
        cause=result.cause,
        usage=result.usage,
        enforcement=result.enforcement,
        exit_code=result.exit_code,
        signal=result.signal,
        backend=result.sandbox.backend,
        level=result.sandbox.level,
        sandbox=result.sandbox.id,
        **read,
    )


def of_value(
    admission: "Admission", outputs: Digests = NO_OUTPUTS, input_digest: str = ""
) -> Execution:
    """Return the execution of an act without a command. ``input_digest`` is of what was streamed
    in."""
    done = Cause.of(CauseCode.EXITED, "done")
    known = admission.where.fields()
    if input_digest:
        known["input_digest"] = input_digest
    return _execution(admission, outputs, cause=done, **known)


def of_error(admission: "Admission", error: BaseException | None) -> Execution:
    """Return the execution of an act that failed, or (None) was cut off before its end."""
    if error is None or isinstance(error, ConnectionAbortedError):  # the latter: of an upload
        gone = Cause.of(CauseCode.CANCELLED, "nobody waited for its end")
        cause = SHUT_DOWN if admission.is_cut_off else gone
    elif isinstance(error, AgentdError):
        cause = cause_of(error)
    else:
        cause = Cause(CauseCode.FAILED, type(error).__name__, infrastructure=True)
    return _execution(admission, {}, cause=cause, **admission.where.fields())


class Ran(msgspec.Struct, frozen=True):
    """The sandbox in which an act ran, with its controls."""

    sandbox: str = ""
    backend: str = ""
    level: str = ""
    enforcement: Mapping[str, Control] = {}

    def fields(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self)

    def info(self) -> SandboxInfo | None:
        """Return the sandbox; None where there was none."""
        return SandboxInfo(self.sandbox, self.backend, self.level) if self.sandbox else None


NOWHERE = Ran()


def digest(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


def digest_of(value: Any) -> str:
    """Return the digest of a JSON value in its canonical form.

    A value without one (a file name that is not UTF-8) is hashed by its repr: stable here, but
    nobody else can compute it."""
    try:
        return digest(canonical(value))
    except AgentdError:
        return digest(repr(value).encode("utf-8", "surrogatepass"))


def _execution(admission: "Admission", outputs: Digests, **known: Any) -> Execution:
    act, decision = admission.act, admission.decision
    parameters = act.parameters
    named = {"capability": act.name, "parameters": dict(parameters), **act.how}
    given = _given(parameters)
    if given is not None:
        known.setdefault("input_digest", digest(given))
    return Execution(
        principal=act.who.name,
        request=act.request,
        request_digest=digest_of(named),
        capability=act.name,
        decision=Decided(decision.allow, decision.bundle, decision.reasons),
        code_digest=_code_digest(act),
        outputs=outputs,
        started=admission.began,
        ended=time.time(),
        **({"usage": Usage()} | known),
    )


def _given(parameters: Mapping[str, Any]) -> bytes | None:
    """Return what a call brings for its command to read, or for a file."""
    for name, encoding in (("stdin", "stdin_encoding"), ("content", "encoding")):
        text = parameters.get(name)
        if text and isinstance(text, str):
            if parameters.get(encoding) == "base64":
                with contextlib.suppress(ValueError):  # the capability says so
                    return b64decode(text, validate=True)
            return text.encode("utf-8", "surrogatepass")
    return None


def _code_digest(act: Act) -> str:
    code = act.parameters.get("code")
    if isinstance(code, str):
        return digest(code.encode("utf-8", "surrogatepass"))
    if "command" in act.parameters:
        return digest_of([act.parameters["command"], *act.parameters.get("args", ())])
    return ""
