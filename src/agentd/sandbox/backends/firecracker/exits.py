"""How Firecracker ended, in words and as a cause: FcExitCode of its src/vmm/src/lib.rs."""

from typing import NamedTuple

from agentd.model.cause import CauseCode
from agentd.model.errors import BackendLost


class Ending(NamedTuple):
    code: CauseCode
    what: str
    fix: str = ""


_NEW = "create a new sandbox"
_LOG = "see the end of its log"
_ENDINGS = {
    0: Ending(CauseCode.BACKEND_LOST, "the guest shut down or its kernel panicked", _NEW),
    1: Ending(CauseCode.BACKEND_LOST, "it gave up", _LOG),
    2: Ending(CauseCode.BACKEND_LOST, "it failed unexpectedly", _LOG),
    12: Ending(CauseCode.OOM, "the host had no memory for it", "free memory or lower --memory"),
    127: Ending(CauseCode.SPAWN_FAILED, "its program could not be started", _LOG),
    148: Ending(
        CauseCode.SECCOMP_VIOLATION,
        "it made a system call that its filter forbids",
        "use a release build of Firecracker; if it is one, the guest may have broken out",
    ),
    149: Ending(
        CauseCode.OOM, "it touched memory that is not there (SIGBUS)",
        "free huge pages or disk space, and keep a snapshot's memory file whole",
    ),
    150: Ending(CauseCode.BACKEND_LOST, "it crashed (SIGSEGV)", _LOG),
    151: Ending(
        CauseCode.DISK_FULL, "a file grew beyond its limit (SIGXFSZ)",
        "see the jailer's --resource-limit fsize",
    ),
    152: Ending(CauseCode.SPAWN_FAILED, "its configuration is wrong", _LOG),
    153: Ending(CauseCode.SPAWN_FAILED, "its arguments are wrong", "use another release of it"),
    154: Ending(CauseCode.TIMEOUT, "it used up its CPU time (SIGXCPU)", _NEW),
    155: Ending(CauseCode.BACKEND_LOST, "it wrote to a closed pipe (SIGPIPE)", _NEW),
    156: Ending(CauseCode.CANCELLED, "it was hung up (SIGHUP)", _NEW),
    157: Ending(CauseCode.BACKEND_LOST, "it met an illegal instruction (SIGILL)", _LOG),
}  # fmt: skip
_KILLED = -9


def ending(status: int | None, *, oom: bool = False) -> Ending:
    """``status`` is the exit code, negative for a signal; ``oom``: its group counted a kill."""
    if status is None:
        return Ending(CauseCode.BACKEND_LOST, "it is gone", _NEW)
    if status == _KILLED:
        if oom:
            return Ending(CauseCode.OOM, "the machine outgrew its group's memory", "raise --memory")
        return Ending(CauseCode.BACKEND_LOST, "it was killed", _NEW)
    if status < 0:
        return Ending(CauseCode.BACKEND_LOST, f"signal {-status} ended it", _LOG)
    known = _ENDINGS.get(status)
    return known or Ending(CauseCode.BACKEND_LOST, f"it exited with {status}", _LOG)


class MonitorEnded(BackendLost):
    """Firecracker has ended; ``ending`` says how, ``log`` is the end of what it printed."""

    def __init__(self, found: Ending, status: int | None, log: str = "") -> None:
        number = "" if status is None else f" (status {status})"
        super().__init__("firecracker ended", cause=f"{found.what}{number}", remediation=found.fix)
        self.ending = found
        self.status = status
        self.log = log
        if log:
            self.add_note(f"the end of its log:\n{log}")
