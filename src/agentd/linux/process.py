"""What a process sets on itself, and how it ends everything below it."""

import contextlib
import errno
import os
import signal
import time

from agentd.linux import abi
from agentd.linux.kernel import KERNEL, Kernel

_POLL_SECONDS = 0.001
# Processes a round looks at: more than a kernel's pid_max allows cannot be.
_MAX_PROCESSES = 1 << 22
_FDINFO_BYTES = 4096
_MOST_FILES = 65536
_OOM_SCORE_ADJ_MIN, _OOM_SCORE_ADJ_MAX = -1000, 1000


def set_no_new_privs(kernel: Kernel = KERNEL) -> None:
    """Has no exec gain privileges any more (set-uid bits, file capabilities), for good."""
    kernel.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)


def set_dumpable(dumpable: bool, kernel: Kernel = KERNEL) -> None:
    """Sets whether others of the same uid may ptrace this process and read its /proc files.

    An exec of an ordinary program sets it again.
    """
    kernel.prctl(abi.PR_SET_DUMPABLE, int(dumpable))


def set_pdeathsig(number: int, kernel: Kernel = KERNEL) -> None:
    """Get signal ``number`` when the parent *thread* ends; 0 for none.

    The parent may be gone already: the caller compares ``os.getppid()`` afterwards. Cleared by a
    fork, by exec of a set-uid program, and by a change of credentials.
    """
    kernel.prctl(abi.PR_SET_PDEATHSIG, number)


def set_child_subreaper(enabled: bool = True, kernel: Kernel = KERNEL) -> None:
    """Has orphaned descendants become this process' children, not init's."""
    kernel.prctl(abi.PR_SET_CHILD_SUBREAPER, int(enabled))


def map_ids(uid: tuple[int, int], gid: tuple[int, int], kernel: Kernel = KERNEL) -> None:
    """Maps one user and one group, each ``(inside, outside)``, in the user namespace that this
    process has just made, as it may its own. Raises OSError."""
    kernel.write("/proc/self/setgroups", "deny")
    kernel.write("/proc/self/gid_map", f"{gid[0]} {gid[1]} 1")
    kernel.write("/proc/self/uid_map", f"{uid[0]} {uid[1]} 1")


def pidfd_of_fdinfo(fd: int) -> int:
    """Returns the pid of a pidfd in this pid namespace; -1 once it was reaped, 0 if not visible.

    Raises OSError (EBADF, or EINVAL where ``fd`` is not a pidfd).
    """
    os.fstat(fd)
    info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(info, _FDINFO_BYTES)
    finally:
        os.close(info)
    for line in text.splitlines():
        if line.startswith(b"Pid:"):
            return int(line[4:])
    raise OSError(errno.EINVAL, f"descriptor {fd} is not a pidfd")


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one, or to 65536.

    1024, the usual one, is soon used up by connections and sandboxes; and the kernel passes no
    descriptor on for a process whose user has more of them on their way than its soft limit.
    """
    import resource  # late: few need it

    with contextlib.suppress(OSError):  # a seccomp profile refuses it: who needs it says so
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def oom_score_adj(value: int, pid: int | None = None) -> None:
    """Set how readily the OOM killer takes a process, -1000 (never) to 1000 (first).

    Lowering it below what an ancestor set needs CAP_SYS_RESOURCE (EACCES).
    """
    if not _OOM_SCORE_ADJ_MIN <= value <= _OOM_SCORE_ADJ_MAX:
        raise ValueError(f"oom_score_adj {value} is not between -1000 and 1000")
    fd = os.open(f"/proc/{pid or 'self'}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def umask() -> int:
    """Returns this process's, without setting it: other threads make files meanwhile. Where /proc
    does not tell it, as gVisor's, it is set for a moment, to what leaves a file to its owner."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def be_spared_no_more() -> None:
    """Take back an ``oom_score_adj`` below 0 that a caller's service has, as of systemd's
    OOMScoreAdjust=: what is below us would be killed after everything else of the machine.

    With CAP_SYS_RESOURCE 0 is what no descendant gets below, too (``oom_score_adj_min``).
    """
    with contextlib.suppress(OSError, ValueError):  # no /proc here, or one that is read-only
        with open("/proc/self/oom_score_adj") as file:
            own = int(file.read())
        if own < 0:
            oom_score_adj(0)


def children(pid: int) -> list[int]:
    """Returns the direct children of a process, zombies included; [] when it is gone.

    From /proc/PID/task/*/children (CONFIG_PROC_CHILDREN). A snapshot: a child that is born or
    reparented meanwhile may be missing.
    """
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as listing:
                found.extend(map(int, listing.read().split()))
        except (FileNotFoundError, ProcessLookupError):
            if os.path.exists(f"/proc/{pid}/task/{thread}"):
                raise  # not a race: this kernel has no such file
    return found


def descendants(pid: int) -> list[int]:
    """Returns all processes below ``pid``, parents first; a snapshot, as ``children`` is."""
    found: list[int] = []
    level = children(pid)
    while level and len(found) < _MAX_PROCESSES:
        found.extend(level)
        level = [child for parent in level for child in children(parent)]
    return found


def kill_descendants(pid: int, deadline: float) -> bool:
    """Kill and reap everything below ``pid``, which is the caller, a subreaper.

    SIGKILL goes round after round: what a dying parent leaves is reparented here and met in the
    next one. ``deadline`` is a time of ``time.monotonic``; False when something was still there
    then. Exit statuses are lost.
    """
    if pid != os.getpid():
        raise ValueError(f"pid {pid} is not this process: only a parent can reap")
    while True:
        below = descendants(pid)
        family = {pid, *below}
        for victim in below:
            _kill_in_family(victim, family)
        _reap()
        if not below:
            return True
        if time.monotonic() >= deadline:
            return not descendants(pid)
        time.sleep(_POLL_SECONDS)


def _kill_in_family(pid: int, family: set[int]) -> None:
    """SIGKILL ``pid`` if its parent is in ``family``.

    A grandchild that its own parent reaped may have left its number to a stranger. The pidfd pins
    the process first; then the number is checked: had it changed hands since, the signal fails.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError as error:
        if error.errno != errno.EINVAL:  # as one that is being reaped answers
            raise
        return
    try:
        if _parent(pid) in family:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return
    finally:
        os.close(pidfd)


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as stat:
        # proc_pid_stat(5): the command's name, in brackets, may itself hold brackets and spaces.
        return int(stat.read().rpartition(b")")[2].split()[1])


def _reap() -> None:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor but these."""
    low = 0
    for fd in sorted(keep):
        if low < fd:  # an empty range reaches close_range(2) as one without an end
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))
