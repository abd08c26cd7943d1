"""How a machine's monitor ended: as a cause, in words, and with the end of what it printed."""

import re
import signal
from typing import NamedTuple

from agentd.model.errors import BackendLost
from agentd.model.result import Cause, CauseCode
from agentd.transport.text import safe_text

NEW = "create a new sandbox"
LOG = "see the end of its log"
_LINES, _CHARACTERS = 4, 400
# Firecracker's own words; the kernel's are in its own log alone.
_BAD_CALL = re.compile(r"bad syscall \((\d{1,4})\)")
_SIGNALS = {
    signal.SIGKILL: (CauseCode.BACKEND_LOST, "it was killed", NEW),
    signal.SIGSYS: (
        CauseCode.SECCOMP_VIOLATION,
        "it made a system call that its filter forbids",
        "see the kernel's log for the call; the guest may have broken out of the virtual machine",
    ),
    signal.SIGBUS: (
        CauseCode.OOM,
        "it touched memory that is not there (SIGBUS)",
        "free memory, huge pages or disk space",
    ),
    signal.SIGSEGV: (CauseCode.BACKEND_LOST, "it crashed (SIGSEGV)", LOG),
    signal.SIGABRT: (CauseCode.BACKEND_LOST, "it gave up (SIGABRT)", LOG),
    signal.SIGILL: (CauseCode.BACKEND_LOST, "it met an illegal instruction (SIGILL)", LOG),
    signal.SIGXFSZ: (CauseCode.DISK_FULL, "a file grew beyond its limit (SIGXFSZ)", NEW),
}


class Ending(NamedTuple):
    """``fix`` is a remediation; ``log`` is the end of what it printed, safe to show, or empty.
    ``status`` is its exit code, negative for a signal, None where nobody saw it.
    """

    code: CauseCode
    what: str
    fix: str = NEW
    log: str = ""
    status: int | None = None

    @property
    def text(self) -> str:
        """Say it in one line."""
        return f"{self.what}; the end of its log: {tail(self.log)}" if self.log else self.what

    def cause(self) -> Cause:
        # A monitor is the machine's: what it had too little of is no limit of the program's.
        text = f"the virtual machine ended: {self.text}"
        return Cause(self.code, text, self.fix, infrastructure=True)


class MachineEnded(BackendLost):
    """Whatever was asked of it, the machine has ended; ``ending`` says how."""

    def __init__(self, found: Ending) -> None:
        super().__init__("the virtual machine is gone", cause=found.text, remediation=found.fix)
        self.ending = found
        self.status = found.status


def of_status(status: int | None, log: str, *, oom: bool) -> Ending:
    """Of an exit code, negative for a signal, None where nobody saw it. ``oom``: its group has
    counted a kill. What the code says of the program itself is its wall's to know.
    """
    if status is None:
        return Ending(CauseCode.BACKEND_LOST, "its exit status is not known")
    return named(Ending(*_meaning(status, oom=oom), safe_log(log), status))


def _meaning(status: int, *, oom: bool) -> tuple[CauseCode, str, str]:
    if status >= 0:
        return CauseCode.BACKEND_LOST, f"its monitor exited with {status}", LOG
    if status == -signal.SIGKILL and oom:
        what = "its monitor outgrew its control group's memory and was killed"
        return CauseCode.OOM, what, NEW
    known = {int(number): meaning for number, meaning in _SIGNALS.items()}
    return known.get(-status, (CauseCode.BACKEND_LOST, f"signal {-status} ended it", LOG))


def named(found: Ending) -> Ending:
    """Name the number of the forbidden call, where its log has it."""
    calls = _BAD_CALL.findall(found.log)
    if found.code is not CauseCode.SECCOMP_VIOLATION or not calls:
        return found
    what = found.what.replace("a system call that", f"system call {calls[-1]}, which")
    return found._replace(what=what)


def tail(log: str) -> str:
    """Returns the last lines of a ``safe_log`` in one."""
    text = " | ".join(log.splitlines()[-_LINES:])
    return text if len(text) <= _CHARACTERS else "..." + text[-_CHARACTERS:]


def safe_log(text: str) -> str:
    """Return its lines without what a terminal would obey; empty ones left out."""
    lines = (safe_text(line.strip(), _CHARACTERS) for line in text.splitlines())
    return "\n".join(line for line in lines if line)
