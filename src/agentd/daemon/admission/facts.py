"""Builds a receipt's execution from the act, the decision and the outcome."""

import time
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.audit.receipt import Decided, Execution
from agentd.daemon.admission.acts import Act
from agentd.daemon.commands.ends import cause_of
from agentd.model.canonical import canonical
from agentd.model.cause import Cause, CauseCode
from agentd.model.enforcement import Control
from agentd.model.errors import AgentdError
from agentd.model.result import Result, SandboxInfo, Usage

if TYPE_CHECKING:
    from agentd.daemon.admission.admission import Admission

Digests = Mapping[str, str]
NO_OUTPUTS: Digests = {}


def of_result(admission: "Admission", result: Result, outputs: Digests) -> Execution:
    """Return the execution of a command, or of a call that a command did."""
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
    """Return the execution of an act that failed, or (None) was abandoned before its end."""
    if error is None:
        cause = Cause.of(CauseCode.CANCELLED, "nobody waited for its end")
    elif isinstance(error, AgentdError) and error.code == CauseCode.CANCELLED:
        cause = Cause.of(CauseCode.CANCELLED, str(error))
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
    named = {"capability": act.name, "parameters": dict(parameters)}
    stdin = parameters.get("stdin") or parameters.get("content")
    if isinstance(stdin, str):
        known.setdefault("input_digest", digest(stdin.encode("utf-8", "surrogatepass")))
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


def _code_digest(act: Act) -> str:
    code = act.parameters.get("code")
    if isinstance(code, str):
        return digest(code.encode("utf-8", "surrogatepass"))
    if "command" in act.parameters:
        return digest_of([act.parameters["command"], *act.parameters.get("args", ())])
    return ""
