"""How Firecracker ended, by its exit code: FcExitCode of its src/vmm/src/lib.rs."""

from agentd.model.result import CauseCode
from agentd.sandbox.backends.vm import ending
from agentd.sandbox.backends.vm.ending import LOG, NEW, Ending

_ENDINGS = {
    0: Ending(CauseCode.BACKEND_LOST, "the guest shut down or its kernel panicked", NEW),
    1: Ending(CauseCode.BACKEND_LOST, "it gave up", LOG),
    2: Ending(CauseCode.BACKEND_LOST, "it failed unexpectedly", LOG),
    12: Ending(CauseCode.OOM, "the host had no memory for it", "free memory or lower --memory"),
    127: Ending(CauseCode.SPAWN_FAILED, "its program could not be started", LOG),
    148: Ending(
        CauseCode.SECCOMP_VIOLATION,
        "it made a system call that its filter forbids",
        "use a release build of Firecracker; if it is one, the guest may have broken out",
    ),
    149: Ending(
        CauseCode.OOM, "it touched memory that is not there (SIGBUS)",
        "free huge pages or disk space, and keep a snapshot's memory file whole",
    ),
    150: Ending(CauseCode.BACKEND_LOST, "it crashed (SIGSEGV)", LOG),
    151: Ending(
        CauseCode.DISK_FULL, "a file grew beyond its limit (SIGXFSZ)",
        "see the jailer's --resource-limit fsize",
    ),
    152: Ending(CauseCode.SPAWN_FAILED, "its configuration is wrong", LOG),
    153: Ending(CauseCode.SPAWN_FAILED, "its arguments are wrong", "use another release of it"),
    154: Ending(CauseCode.TIMEOUT, "it used up its CPU time (SIGXCPU)", NEW),
    155: Ending(CauseCode.BACKEND_LOST, "it wrote to a closed pipe (SIGPIPE)", NEW),
    156: Ending(CauseCode.CANCELLED, "it was hung up (SIGHUP)", NEW),
    157: Ending(CauseCode.BACKEND_LOST, "it met an illegal instruction (SIGILL)", LOG),
}  # fmt: skip


def of_status(status: int | None, log: str = "", *, oom: bool = False) -> Ending:
    """``status`` is negative for a signal; ``oom``: its group counted a kill."""
    known = None if status is None else _ENDINGS.get(status)
    if known is None:
        return ending.of_status(status, log, oom=oom)
    told = known._replace(what=f"{known.what} (status {status})", status=status)
    # What a guest that shuts down leaves is its own words, if any.
    return told if status == 0 else ending.named(told._replace(log=ending.safe_log(log)))
