"""The HTTP status of an error, by its code; a door of another form may have its own."""

import errno
import math

from agentd.model.capability import CallFailed
from agentd.model.errors import AgentdError

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
    "not_ready": 502,
    "operation_failed": 502,
    "unavailable": 503,
    "draining": 503,
    "store_busy": 503,
    "store_error": 503,
    "busy": 503,
    "policy_undecided": 503,
    "interrupted": 503,
    "audit_error": 503,
    "audit_busy": 503,
}
# The codes of capabilities are their own: a "busy" there is none of the daemon's.
CALL_FAILED = {"not_found": 404, "too_large": 413}
# Where the same question finds the same policy, or may have been done already: no "come again".
_NOT_AGAIN = frozenset(("policy_undecided", "interrupted"))
_CALL_FAILED = 422  # well asked, and it cannot be had
FAILED = "failed"  # in Agentd-Call: the capability's error, and not the daemon's of that code
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
    errno.EXDEV: 400,
    errno.ECONNREFUSED: 409,  # nothing listens there, or not yet
}


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


def headers_of(error: AgentdError) -> dict[str, str]:
    """Return what an error's answer says of when to come again, and with what."""
    status, headers = status_of(error), dict[str, str]()
    if isinstance(error, CallFailed):
        headers["agentd-call"] = FAILED
    again = status == 503 and error.code not in _NOT_AGAIN
    retry_after = getattr(error, "retry_after", 1.0 if again else None)
    if status in (429, 503) and retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after)))
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="agentd"'
    return headers
