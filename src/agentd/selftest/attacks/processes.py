"""The host's processes, and other processes of the sandbox."""

import os

from agentd.model.isolation import IsolationLevel
from agentd.model.spec import SandboxSpec
from agentd.selftest.attack import (
    END,
    FILTERED,
    Attack,
    AttackOutcome,
    Judged,
    by,
    refused,
    said_only,
    shown,
    unfinished,
)
from agentd.selftest.planted import Planted, no_segment
from agentd.selftest.report import Verdict
from agentd.transport.text import safe_text

# Numbers are of the sandbox's own namespace where it has one: what counts is what is found there.
_SEE = """
marker = "".join(sys.argv[1:3]).encode()
pids = {p for p in tried(os.listdir, "/proc") if p.isdigit()} | {sys.argv[3]}
for name in ("cmdline", "environ"):
    found = False
    for pid in pids - {str(os.getpid())}:
        got = tried(lambda: open(f"/proc/{pid}/{name}", "rb").read(1 << 16))
        found = found or isinstance(got, bytes) and marker in got
    said(name, found)
"""
_STRANGERS = """
def kin(pid):
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    return int(pid) in (1, os.getpid()) or int(fields[1]) in (1, os.getpid())
listed = [p for p in tried(os.listdir, "/proc") if p.isdigit()]
said("strangers", [p for p in listed if tried(kin, p) is False])
"""
_SIGNAL = """
signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the number may be ours, in a namespace of our own
pid = int(sys.argv[1])
said("kill", tried(os.kill, pid, signal.SIGUSR1))
fd = tried(os.pidfd_open, pid)
said("pidfd", fd if isinstance(fd, str) else tried(signal.pidfd_send_signal, fd, signal.SIGUSR1))
said("queue", call("rt_sigqueueinfo", pid, signal.SIGUSR1,
                   struct.pack("=iii4x112x", signal.SIGUSR1, 0, -1)))
said("thread", call("tgkill", pid, pid, signal.SIGUSR1))
"""
# SEIZE attaches and stops nobody; an address that cannot be tells EFAULT of EPERM.
_TRACE = """
pid = int(sys.argv[1])
local = (ctypes.c_char * 8)()
word, far = struct.pack("PN", ctypes.addressof(local), 8), struct.pack("PN", 4096, 8)
said("seize", call("ptrace", 0x4206, pid, 0, 0))
said("read", call("process_vm_readv", pid, word, 1, far, 1, 0))
said("write", call("process_vm_writev", pid, word, 1, far, 1, 0))
fd = call("pidfd_open", pid, 0)
said("take a descriptor", call("pidfd_getfd", fd, 0, 0) if isinstance(fd, int) else fd)
"""
# Of its parent, by a child that goes at once and takes its request with it: that is no circle.
_TRACE_EXIT = """
call("prctl", 0x59616d61, -1, 0, 0, 0)  # PR_SET_PTRACER: Yama
said("seize", in_child(lambda: call("ptrace", 0x4206, os.getppid(), 0, 0x40)))
said("seize, other options", in_child(lambda: call("ptrace", 0x4206, os.getppid(), 0, 0x51)))
"""
_NAME = 'said("host", os.uname().nodename)'
_GROUPS = """
for line in open("/proc/self/cgroup"):
    number, _, path = line.rstrip().split(":", 2)
    said(number, path)
"""
_SEGMENT = 'said("shmget", call("shmget", int(sys.argv[1]), 1, 0o600))'
_SLOW = """
pid = int(sys.argv[1])
said("priority", tried(os.setpriority, os.PRIO_PROCESS, pid, 0))
said("affinity", tried(os.sched_setaffinity, pid, range(1024)))
said("scheduler", call("sched_setscheduler", pid, 0, struct.pack("=i", 0)))
said("limits", call("prlimit64", pid, 7, 0, ctypes.create_string_buffer(16)))
"""
# Out of its session, deaf to every signal, with the marker for its name: it has that, and closed
# the pipe by it, before the attack has come to its end, however busy the machine is.
_OUTLIVE = """
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in set(range(1, 65)) - {9, 19, 32, 33}:
            signal.signal(number, signal.SIG_IGN)
        code = "import time; time.sleep(30)"
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", code, "".join(sys.argv[1:3])])
    os._exit(0)
os.wait()
os.close(write)
os.read(read, 1)
"""


def _judge_signal(seen: AttackOutcome) -> Judged:
    if seen.planted.signalled():
        return Verdict.THROUGH, "the signal arrived"
    return unfinished(seen) or (Verdict.STOPPED, shown(seen.said))


def _judge_outlive(planted: Planted) -> Judged:
    left = planted.carriers()
    if left:
        return Verdict.THROUGH, f"process {left[0]} is still there"
    return Verdict.STOPPED, "a deaf grandchild in a session of its own is gone with it"


def _holder(planted: Planted) -> tuple[str, ...]:
    return (str(planted.holder),)


def _of_this_name(_: Planted) -> str:
    own = SandboxSpec().hostname
    return f"this machine is called {own}, too" if os.uname().nodename == own else ""


def _judge_name(seen: AttackOutcome) -> Judged:
    if (early := unfinished(seen)) is not None:
        return early
    told = seen.said["host"]
    return Verdict.THROUGH if told == os.uname().nodename else Verdict.STOPPED, safe_text(told)


# A group is named for the agentd that made it, wherever its host has put that.
def _judge_groups(seen: AttackOutcome) -> Judged:
    if (early := unfinished(seen)) is not None:
        return early
    with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
        ours = {line.rstrip().split(":", 2)[2] for line in file} - {"/"}
    named = {
        number: path
        for number, path in seen.said.items()
        if number != END and (path in ours or "/sbx-" in path)
    }
    if named:
        return Verdict.THROUGH, shown(named)
    return Verdict.STOPPED, "none but its own root"


_OF_ITS_OWN = {
    IsolationLevel.USERSPACE_KERNEL: ("userspace_kernel",),
    IsolationLevel.MICROVM: ("virtual_machine",),
}
ATTACKS = (
    Attack(
        "see a host process, its arguments and environment",
        _SEE,
        by("landlock", "pid_namespace"),
        said_only({"False"}, "found nowhere"),
        lambda planted: (*planted.halves(), str(planted.holder)),
    ),
    Attack(
        "list processes that are not the sandbox's",
        _STRANGERS,
        by("landlock", "pid_namespace", ""),
        said_only({"[]"}, "there are none"),
        otherwise="the machine's own processes are listed, and there are no others",
    ),
    Attack(
        "signal a host process",
        _SIGNAL,
        by("landlock user", "pid_namespace"),
        _judge_signal,
        _holder,
    ),
    Attack(
        "slow down a host process",
        _SLOW,
        by("seccomp user capabilities", "pid_namespace", ""),
        refused(),
        _holder,
        otherwise="a number there is of the machine's own processes",
        thorough=True,
    ),
    Attack(
        "trace and read a host process",
        _TRACE,
        by("seccomp landlock user capabilities", "pid_namespace", ""),
        refused(),
        _holder,
        otherwise="a number there is of the machine's own processes",
    ),
    Attack(
        "trace so that what is killed never ends",
        _TRACE_EXIT,
        FILTERED,
        refused(),
        otherwise="what does not end there ends with its machine",
    ),
    Attack(
        "open the host's shared memory",
        _SEGMENT,
        by("seccomp", "ipc_namespace"),
        refused(),
        lambda planted: (str(planted.segment),),
        absent=no_segment,
    ),
    Attack(
        "learn the machine's name",
        _NAME,
        _OF_ITS_OWN,
        _judge_name,
        told=("hostname",),
        otherwise="this wall does not say that it hides it",
        absent=_of_this_name,
    ),
    Attack(
        "learn the names of the machine's control groups",
        _GROUPS,
        _OF_ITS_OWN,
        _judge_groups,
        told=("cgroup_namespace",),
        otherwise="this wall does not say that it hides them",
    ),
    Attack(
        "outlive the sandbox",
        _OUTLIVE,
        by("monitor", "pid_namespace"),
        said_only({"reached"}),
        Planted.halves,
        fresh=True,
        after=_judge_outlive,
    ),
)
