"""Why a thing ended, and what to do about it."""

from enum import StrEnum

import msgspec


class CauseCode(StrEnum):
    EXITED = "exited"
    SIGNALLED = "signalled"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    OOM = "oom"
    PIDS_LIMIT = "pids_limit"
    OUTPUT_LIMIT = "output_limit"
    DISK_FULL = "disk_full"
    SECCOMP_VIOLATION = "seccomp_violation"
    POLICY_DENIED = "policy_denied"
    LEASE_EXPIRED = "lease_expired"
    BACKEND_LOST = "backend_lost"
    SPAWN_FAILED = "spawn_failed"
    INTERRUPTED = "interrupted"  # its daemon was killed, and nobody saw its end
    FAILED = "failed"  # a call that came to nothing; the message has its error's code


REMEDIATION = {
    CauseCode.TIMEOUT: "raise --timeout, or make the command finish sooner",
    CauseCode.OOM: "raise --memory, or make the command use less",
    CauseCode.PIDS_LIMIT: "raise --pids, or start fewer processes",
    CauseCode.OUTPUT_LIMIT: "raise --output, or write to a file in the workspace",
    CauseCode.DISK_FULL: "raise --disk, or write less",
    CauseCode.SECCOMP_VIOLATION: "the program used a system call of a foreign architecture; "
    "run it behind a stronger wall",
    CauseCode.LEASE_EXPIRED: "renew the sandbox before its lease ends",
    CauseCode.BACKEND_LOST: "create a new sandbox; see the detail for what killed this one",
    CauseCode.INTERRUPTED: "it may have been done or not: look before you do it again",
    CauseCode.SPAWN_FAILED: "check the command's name, its PATH and its working directory",
}


#: Whether the machine is to blame: agentd, its host, or the wall. Else what was run, or who asked.
#: Of a code that is False here, a single cause may say True (a monitor that could not be started).
INFRASTRUCTURE = {
    CauseCode.EXITED: False,
    CauseCode.SIGNALLED: False,
    CauseCode.TIMEOUT: False,
    CauseCode.CANCELLED: False,
    CauseCode.OOM: False,
    CauseCode.PIDS_LIMIT: False,
    CauseCode.OUTPUT_LIMIT: False,
    CauseCode.DISK_FULL: False,
    CauseCode.SECCOMP_VIOLATION: False,
    CauseCode.POLICY_DENIED: False,
    CauseCode.LEASE_EXPIRED: False,
    CauseCode.BACKEND_LOST: True,
    CauseCode.SPAWN_FAILED: False,
    CauseCode.INTERRUPTED: True,
    CauseCode.FAILED: False,  # as its error says
}


class Cause(msgspec.Struct, frozen=True):
    """``code`` is for programs, ``message`` for people, ``remediation`` what to do, or empty.

    ``infrastructure``: the machine is to blame and not the program, so that the same again may end
    otherwise. It is always so for the codes that INFRASTRUCTURE says it of, also in what an agentd
    wrote that knew no such field.
    """

    code: CauseCode
    message: str
    remediation: str = ""
    infrastructure: bool = False

    def __post_init__(self) -> None:
        if INFRASTRUCTURE[self.code]:
            msgspec.structs.force_setattr(self, "infrastructure", True)

    @classmethod
    def of(cls, code: CauseCode, message: str) -> "Cause":
        return cls(code, message, REMEDIATION.get(code, ""))
