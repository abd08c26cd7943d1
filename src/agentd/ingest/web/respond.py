"""Values and errors to answers: JSON by msgspec, the status by the error's code."""

import errno
import logging
import math

import msgspec

from agentd.model.api import Answer, ErrorView
from agentd.model.capability import CallFailed
from agentd.model.errors import AgentdError, InvalidInput

_log = logging.getLogger(__name__)
JSON = "application/json"
_encode = msgspec.json.Encoder().encode

# The table of docs/api.md. A code that is not here has the status of the error's base class.
STATUS = {
    "invalid_input": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "refused": 403,
    "policy_denied": 403,
    "approval_denied": 403,
    "approval_expired": 403,
    "approval_withdrawn": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "conflict": 409,
    "idempotency_interrupted": 409,
    "idempotency_answer_dropped": 409,
    "backend_lost": 410,
    "lease_expired": 410,
    "too_large": 413,
    "unsupported_media_type": 415,
    "range_not_satisfiable": 416,
    "idempotency_mismatch": 422,
    "quota_exceeded": 429,
    "full": 429,
    "idempotency_full": 429,
    "headers_too_large": 431,
    "internal": 500,
    "unsupported": 501,
    "sandbox_error": 502,
    "guest_error": 502,
    "operation_failed": 502,
    "unavailable": 503,
    "draining": 503,
    "store_busy": 503,
    "store_error": 503,
    "busy": 503,
    "policy_undecided": 503,
    "audit_error": 503,
    "audit_busy": 503,
}
# The codes of capabilities are their own: a "busy" there is none of the daemon's.
CALL_FAILED = {"not_found": 404, "too_large": 413}
_CALL_FAILED = 422  # well asked, and it cannot be had
ERRNO = {
    errno.ENOENT: 404,
    errno.EEXIST: 409,
    errno.ENOTEMPTY: 409,
    errno.EBUSY: 409,
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EROFS: 403,
    errno.ENOSPC: 507,
    errno.EDQUOT: 507,
    errno.EFBIG: 413,
    errno.EINVAL: 400,
    errno.EISDIR: 400,
    errno.ENOTDIR: 400,
    errno.ELOOP: 400,
    errno.ENAMETOOLONG: 400,
    errno.ECONNREFUSED: 409,  # nothing listens there, or not yet
}


class Busy(AgentdError):
    """The server has no room for another connection."""

    code = "busy"


class HeadersTooLarge(InvalidInput):
    code = "headers_too_large"


class RequestTimeout(InvalidInput):
    code = "request_timeout"


class MethodNotAllowed(InvalidInput):
    code = "method_not_allowed"


class UnsupportedMediaType(InvalidInput):
    code = "unsupported_media_type"


class RangeNotSatisfiable(InvalidInput):
    code = "range_not_satisfiable"


class Draining(AgentdError):
    code = "draining"


class Reply(msgspec.Struct, frozen=True):
    """A value with another status than its operation's."""

    status: int
    value: object
    headers: dict[str, str] = {}


def answer(value: object, status: int = 200) -> Answer:
    headers: dict[str, str] = {}
    if isinstance(value, Reply):
        status, headers, value = value.status, value.headers, value.value
    if value is None:
        return Answer(204)
    return Answer(status, encode(value), {"content-type": JSON, **headers})


def encode(value: object) -> bytes:
    """JSON. A lone surrogate (a file name that is not UTF-8) becomes U+FFFD."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_printable(msgspec.to_builtins(value)))


def _printable(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    return value


def status_of(error: AgentdError) -> int:
    if isinstance(error, CallFailed):
        return CALL_FAILED.get(error.code, _CALL_FAILED)
    number = getattr(error, "errno", 0)
    if error.code == "operation_failed" and number in ERRNO:
        return ERRNO[number]
    for kind in (error, *type(error).__mro__):
        status = STATUS.get(getattr(kind, "code", ""))
        if status is not None:
            return status
    return 500


def error_answer(error: AgentdError) -> Answer:
    status = status_of(error)
    headers = {"content-type": JSON}
    # The same question finds the same policy: to ask again is not what mends it.
    again = status == 503 and error.code != "policy_undecided"
    retry_after = getattr(error, "retry_after", 1.0 if again else None)
    if status in (429, 503) and retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after)))
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="agentd"'
    view = ErrorView(error.code, error.message, error.cause, error.remediation)
    return Answer(status, encode(view), headers)


def internal(error: Exception, what: str) -> AgentdError:
    """What an error that nobody foresaw is told as: the log has the rest."""
    _log.error("%s failed", what, exc_info=error)
    return AgentdError(
        "the daemon failed to answer this", remediation="its log says why; please report it"
    )
