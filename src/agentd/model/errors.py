"""What can go wrong, as a caller sees it.

    AgentdError
      +-- InvalidInput          the request is malformed; nothing was run
      |     +-- TooLarge        it has more bytes than are taken
      |     +-- CallFailed      a capability did what it was asked, and that cannot be had
      +-- Unauthenticated       nobody we know asks: no credential, or one that does not hold
      +-- Refused               it is well-formed, and will not be run
      |     +-- Forbidden       whoever asks is known, and may not do this
      |     +-- PolicyDenied    the policy says no
      |     +-- Undecided       the policy could not say yes or no: not run either
      |     +-- Unsupported     this wall cannot do that; another one could
      |     +-- Unavailable     no wall here satisfies it; carries the blockers and their fixes
      |     +-- Full            there is no room for it now
      |           +-- QuotaExceeded  of the caller's own quota
      +-- NotFound              there is no such sandbox, process or snapshot (or it is another's)
      +-- Conflict              it is in a state that does not allow that
      +-- SandboxError          the sandbox could not be built, or it broke
      |     +-- NotReady        what its template starts did not come up in time, or at all
      |     +-- BackendLost     the wall died under its work
      |     |     +-- SandboxEnded  or somebody, its lease or want of memory ended it
      |     +-- GuestError      the agent inside broke the protocol
      +-- OperationFailed       the agent answered with an error (a missing file, say)
      +-- CommandFailed         ``run(check=True)`` met a command that did not succeed
      +-- Unreachable           no daemon answers, or the connection broke

All of them can be imported from ``agentd``; CallFailed is ``model.capability``'s, and the last two
are the SDK's own.

``infrastructure`` says of each whether the machine is to blame (agentd, its host, the wall) or who
asked and what was run: as ``Cause.infrastructure`` does.

Every error says what happened, why, and what to do about it: ``code``, ``message``, ``cause``
and ``remediation`` are the same four fields on every way in. What was sent may be in them, and is
cut there.
"""

import errno as _numbers
from typing import TypeVar

# Characters of each text, at its begin and at its end: what is wrong is said there.
_HEAD, _TAIL = 6000, 2000


class AgentdError(Exception):
    code = "internal"
    infrastructure = True

    def __init__(self, message: str, *, cause: str = "", remediation: str = "") -> None:
        self.message, self.cause, self.remediation = map(_cut, (message, cause, remediation))
        super().__init__(self.message)

    def __str__(self) -> str:
        text = self.message
        if self.cause:
            text += f": {self.cause}"
        if self.remediation:
            text += f" ({self.remediation})"
        return text

    def as_dict(self) -> dict[str, str]:
        """Return the four fields, as they go over any wire."""
        return {
            "code": self.code,
            "message": self.message,
            "cause": self.cause,
            "remediation": self.remediation,
        }


def _cut(text: str) -> str:
    """Return what is told of a text: a request's megabytes are in no answer, log or record."""
    if len(text) <= _HEAD + _TAIL:
        return text
    told = f"... ({len(text)} characters in all) ..."
    return f"{text[: _HEAD - len(told)]}{told}{text[-_TAIL:]}"


class InvalidInput(AgentdError):
    code = "invalid_input"
    infrastructure = False


class TooLarge(InvalidInput):
    code = "too_large"


class Unauthenticated(AgentdError):
    code = "unauthenticated"
    infrastructure = False


class Refused(AgentdError):
    """``is_recorded``: the audit log has a denial that tells of it."""

    code = "refused"
    infrastructure = False
    is_recorded = False


class Unsupported(Refused):
    """The wall cannot do it; another one could."""

    code = "unsupported"


class Forbidden(Refused):
    code = "forbidden"


class PolicyDenied(Refused):
    code = "policy_denied"


class Undecided(Refused):
    code = "policy_undecided"
    infrastructure = True


class Unavailable(Refused):
    """``wanted`` is the isolation that no wall gives, 0 where that is not why; ``weaker`` how
    ``remediation`` begins where a wall below it would do."""

    code = "unavailable"
    infrastructure = True
    wanted = 0
    weaker = ""


class Full(Refused):
    """``retry_after`` is in seconds: when it is worth asking again."""

    code = "full"
    infrastructure = True

    def __init__(
        self, message: str, *, cause: str = "", remediation: str = "", retry_after: float = 1.0
    ) -> None:
        super().__init__(message, cause=cause, remediation=remediation)
        self.retry_after = retry_after


class QuotaExceeded(Full):
    code = "quota_exceeded"
    infrastructure = False


class NotFound(AgentdError):
    code = "not_found"
    infrastructure = False


class Conflict(AgentdError):
    code = "conflict"
    infrastructure = False


class SandboxError(AgentdError):
    code = "sandbox_error"


class NotReady(SandboxError):
    """The template is to blame: its start command, or the check of that."""

    code = "not_ready"
    infrastructure = False


class BackendLost(SandboxError):
    code = "backend_lost"


class SandboxEnded(BackendLost):
    """The machine is not to blame: ``code`` is that of the cause that commands end with there."""

    code = "cancelled"
    infrastructure = False


class GuestError(SandboxError):
    code = "guest_error"


_NOT_YOURS = "name a place that its user may change, as /workspace"
_NO_ROOM = "remove what is not needed any more, or make a sandbox with more room"
# What mends most of what the kernel refuses, where nobody who raises it knows better.
_MENDS = {
    _numbers.ENOENT: "correct the path, or make what is missing; its folder's list tells",
    _numbers.EEXIST: "choose another name, or remove what is there",
    _numbers.EACCES: _NOT_YOURS,
    _numbers.EPERM: _NOT_YOURS,
    _numbers.EROFS: "name a place that can be written to, as /workspace or /tmp",
    _numbers.EISDIR: "that is a folder: name a file, or ask for the folder's list",
    _numbers.ENOTDIR: "correct the path: a part of it is a file, and no folder",
    _numbers.ENOTEMPTY: "remove what is in the folder first, or all of it with recursive",
    _numbers.ELOOP: "name the file itself: its links lead in a circle, or below /proc",
    _numbers.ENAMETOOLONG: "shorten it: a name has at most 255 bytes, a path 4095",
    _numbers.EINVAL: "name another path: this one cannot be used for that",
    _numbers.EBUSY: "name another path: something is mounted there, or it is in use",
    _numbers.EXDEV: "copy it, and remove the old one: it is on another file system",
    _numbers.ENOSPC: _NO_ROOM,
    _numbers.EDQUOT: _NO_ROOM,
    _numbers.EFBIG: "write it as several smaller files",
    _numbers.ENXIO: "name a regular file: nobody is at the other end of that one",
    _numbers.ECONNREFUSED: "start what listens there, and see that it listens on that port",
}


class OperationFailed(AgentdError):
    """The agent inside refused an operation; ``errno`` is the kernel's number, or 0."""

    code = "operation_failed"
    infrastructure = False

    def __init__(
        self, message: str, *, errno: int = 0, cause: str = "", remediation: str = ""
    ) -> None:
        super().__init__(message, cause=cause, remediation=remediation or _MENDS.get(errno, ""))
        self.errno = errno


E = TypeVar("E", bound=BaseException)


def without_frames(error: E) -> E:
    """Drop the frames that ``error``, and each that it came of, was raised in; return it. They hold
    the request's body, and some hold the error: such a cycle stays until Python's collector runs,
    which counts objects and not bytes."""
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__context__
    return error
