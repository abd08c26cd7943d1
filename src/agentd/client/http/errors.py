"""What a daemon answers when it will not, made into the errors of ``model.errors``."""

import errno
import os
import re
from typing import Any, Protocol

import msgspec

from agentd.model import typed, words
from agentd.model.api import ErrorView
from agentd.model.capability import CallFailed
from agentd.model.errors import (
    AgentdError,
    Conflict,
    Full,
    InvalidInput,
    OperationFailed,
    Refused,
    SandboxEnded,
    SandboxError,
    Unauthenticated,
)

_LONGEST = 500  # characters shown of an answer that is not ours


class Unreachable(AgentdError):
    """No daemon answers there, or the connection broke and it is not known what came of it."""

    code = "unreachable"


class _Error(msgspec.Struct):
    code: str
    message: str
    cause: str = ""
    remediation: str = ""
    errno: int = 0
    status: int = 0  # in a message, which has none of its own
    call: str = ""  # likewise; elsewhere it is a header


# Codes without a class of their own: what a caller would catch.
_CODES: dict[str, type[AgentdError]] = {
    "lease_expired": SandboxEnded,
    "oom": SandboxEnded,
    "draining": Full,
    "idempotency_mismatch": InvalidInput,
}
_STATUS: dict[int, type[AgentdError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Refused,
    409: Conflict,
    410: SandboxError,
    413: InvalidInput,
    502: SandboxError,
}
_CALL_FAILED = 422
_NAMES = {os.strerror(number): number for number in errno.errorcode}
_DECODER = typed.decoder(_Error)


class Headers(Protocol):
    def get(self, name: str, default: str) -> str: ...


def from_answer(status: int, headers: Headers, body: bytes) -> AgentdError:
    """Return the error that an answer with a status of 400 or more stands for."""
    try:
        return from_fields(_DECODER.decode(body), status, headers)
    except msgspec.DecodeError:
        text = re.sub(r"\s+", " ", body[:_LONGEST].decode(errors="replace")).strip()
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        error = AgentdError(
            f"the answer has status {status} and is not agentd's",
            cause=shown,
            remediation="check that the address is a daemon's",
        )
        error.status = status  # type: ignore[attr-defined]
        return error


def from_view(view: ErrorView) -> AgentdError:
    """Make the error that came in a message."""
    found = _Error(view.code, view.message, view.cause, view.remediation)
    return from_fields(found, 0, {})


def from_event(data: bytes | str) -> AgentdError:
    """Make the error that came as the last event of a call. Raises msgspec.MsgspecError."""
    found = _DECODER.decode(data)
    return from_fields(found, found.status, {})


def from_fields(found: _Error, status: int, headers: Headers) -> AgentdError:
    message, cause, remediation = map(
        words.in_options, (found.message, found.cause, found.remediation)
    )
    options: dict[str, Any] = {"cause": cause, "remediation": remediation}
    error: AgentdError
    is_of_call = (headers.get("agentd-call", "") or found.call) == "failed"
    if is_of_call or (status == _CALL_FAILED and found.code not in _CODES):
        # A capability's own code, whatever it means elsewhere.
        error = CallFailed(found.code, message, **options)
        error.status = status  # type: ignore[attr-defined]
        return error
    kind = _class(found.code) or _STATUS.get(status, AgentdError)
    if issubclass(kind, OperationFailed):
        options["errno"] = found.errno or _errno(found)
    if issubclass(kind, Full):
        options["retry_after"] = _seconds(headers.get("retry-after", ""))
    error = kind(message, **options)
    error.code = found.code
    error.status = status  # type: ignore[attr-defined]
    return error


def _class(code: str) -> type[AgentdError] | None:
    if code in _CODES:
        return _CODES[code]
    waiting: list[type[AgentdError]] = [AgentdError]
    while waiting:
        kind = waiting.pop()
        if kind.code == code and kind.__module__ == AgentdError.__module__:
            return kind
        waiting += kind.__subclasses__()
    return None


def _errno(found: _Error) -> int:
    """Return the kernel's number from its words, which stand at the end of what happened or why."""
    for text in (found.cause, found.message):
        name = text.rpartition(": ")[2] or text
        if name in _NAMES:
            return _NAMES[name]
    return 0


def _seconds(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 86400.0)
    except ValueError:
        return 1.0
