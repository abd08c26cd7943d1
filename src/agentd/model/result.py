"""What came of a request: its output, how it ended, and why so."""

from base64 import b64encode
from enum import StrEnum

import msgspec

from agentd.model.enforcement import Control


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


class NetworkUsage(msgspec.Struct, frozen=True):
    """What a sandbox has done of a restricted network, up to the command's end: connections and
    names that were ``allowed`` and ``denied``, connections that somebody was ``asked`` about, bytes
    ``sent`` and ``received`` by what has ended, and how many connections went to which host.
    ``cassette`` is "record" where these were recorded, and "replay" where a cassette answered and
    nobody was dialled."""

    allowed: int = 0
    denied: int = 0
    asked: int = 0
    sent: int = 0
    received: int = 0
    hosts: dict[str, int] = {}
    cassette: str = ""


class Usage(msgspec.Struct, frozen=True):
    wall_ms: float = 0.0
    cpu_ms: float = 0.0
    peak_memory_bytes: int = 0
    network: NetworkUsage | msgspec.UnsetType = msgspec.UNSET  # of one that rules restrict


class Timing(msgspec.Struct, frozen=True):
    setup_ms: float = 0.0
    exec_ms: float = 0.0
    total_ms: float = 0.0


class SandboxInfo(msgspec.Struct, frozen=True):
    id: str
    backend: str
    level: str


class Exit(msgspec.Struct, frozen=True):
    """How one command ended. ``exit_code`` is None where a signal ended it or it never ran."""

    exit_code: int | None
    signal: int | None
    cause: Cause
    usage: Usage = Usage()

    @property
    def ok(self) -> bool:
        return self.cause.code is CauseCode.EXITED and self.exit_code == 0


class Result(msgspec.Struct, frozen=True):
    """The whole answer to a request; ``stdout`` and ``stderr`` hold what was captured, as bytes."""

    request_id: str
    status: str  # "ok" exit code 0, "failed" it ran and did not succeed, "error" it never ran
    exit_code: int | None
    signal: int | None
    cause: Cause
    stdout: bytes
    stderr: bytes
    truncated: bool
    usage: Usage
    timing: Timing
    sandbox: SandboxInfo
    enforcement: dict[str, Control]
    changes: tuple[str, ...] = ()
    receipt: str = ""  # its id, where the daemon issues receipts

    @property
    def ok(self) -> bool:
        """Whether it ran and its exit code is 0."""
        return self.status == "ok"

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 become U+FFFD."""
        return self.stdout.decode(errors="replace")

    @property
    def stderr_text(self) -> str:
        """Standard error as text; bytes that are not UTF-8 become U+FFFD."""
        return self.stderr.decode(errors="replace")


def as_texts(stdout: bytes, stderr: bytes) -> tuple[str, str, str]:
    """Write both as text, or both as base64; and return which, "utf-8" or "base64"."""
    try:
        return stdout.decode(), stderr.decode(), "utf-8"
    except UnicodeDecodeError:
        return b64encode(stdout).decode(), b64encode(stderr).decode(), "base64"
