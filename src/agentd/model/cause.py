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


class Cause(msgspec.Struct, frozen=True):
    """``code`` is for programs, ``message`` for people, ``remediation`` what to do, or empty."""

    code: CauseCode
    message: str
    remediation: str = ""

    @classmethod
    def of(cls, code: CauseCode, message: str) -> "Cause":
        return cls(code, message, REMEDIATION.get(code, ""))
