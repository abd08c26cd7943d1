"""The kernel's rare and dangerous interfaces. Calls are made with arguments that the kernel
refuses, so that one that gets there does nothing; its own answer tells it from the filter's."""

import contextlib
import platform
import time
from functools import partial

from agentd.model.isolation import IsolationLevel
from agentd.selftest.attack import (
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
from agentd.selftest.planted import Planted
from agentd.selftest.report import Verdict

_CALLS = """
for name, args in {calls!r}.items():
    if name in NR:
        said(name, call(name, *args))
"""
_SURFACE = _CALLS.format(
    calls={"bpf": (0, 1, 8192), "perf_event_open": (0, 0, -1, -1, 0), "userfaultfd": (-1,)}
)
_IO_URING = _CALLS.format(
    calls={
        "io_uring_setup": (0, 0),
        "io_uring_enter": (-1, 0, 0, 0, 0, 0),
        "io_uring_register": (-1, 0, 0, 0),
    }
)
_KEYS = _CALLS.format(
    calls={"add_key": (0, 0, 0, 0, 0), "request_key": (0, 0, 0, 0), "keyctl": (9999, 0, 0, 0, 0)}
)
_CLOCK = _CALLS.format(
    calls={"clock_settime": (-1, 0), "settimeofday": (1, 0), "clock_adjtime": (-1, 0)}
)
# Without its magic numbers reboot(2) answers EINVAL; a negative length the other two.
_OWNER = _CALLS.format(
    calls={"reboot": (0, 0, 0, 0), "sethostname": (1, -1), "setdomainname": (1, -1)}
)
_OTHERS = _CALLS.format(
    calls={
        "personality": (0x0040000,),
        "prctl": (35, 0, 0, 0, 1),
        "seccomp": (1, 8, 0),
        "modify_ldt": (99, 0, 0),
        "move_pages": (0, -1, 0, 0, 0, -1),
        "migrate_pages": (0, -1, 0, 0),
        "open_by_handle_at": (-1, 0, 0),
        "name_to_handle_at": (-1, 0, 0, 0, 0),
    }
)
# On a file of one's own, for a moment.
_LEASE = """
import fcntl
os.chdir(os.environ.get("TMPDIR", "/tmp"))
with open("leased", "w"):
    pass
file, folder = os.open("leased", os.O_RDONLY), os.open(".", os.O_RDONLY)
for name, fd, command in (("lease", file, 1024), ("high bits", file, 1 << 32 | 1024),
                          ("dnotify", folder, 1026)):
    said(name, call("fcntl", fd, command, 0))
    call("fcntl", fd, command, 2)  # F_UNLCK
os.unlink("leased")
"""
# Without a filter, and of a kind that a pair of sockets has not.
_SHARED = """
ours, theirs = socket.socketpair()
for name, level, option in (("filter", 1, 26), ("filter, high bits", 1 << 32 | 1, 1 << 32 | 26),
                            ("reuseport filter", 1, 51), ("TCP_ULP", 6, 31),
                            ("UDP_ENCAP", 17, 100)):
    said(name, call("setsockopt", ours.fileno(), level, option, 0, 0))
reader, writer = os.pipe()
said("pipe", call("fcntl", writer, 1031, 1 << 17))
"""
_PROC_FACTS = """
for name in ("cmdline", "interrupts", "keys", "key-users", "timer_list", "kcore"):
    try:
        with open(f"/proc/{name}", "rb") as file:
            said(name, "told" if file.read(1) else "empty")
    except OSError as error:
        said(name, errno.errorcode[error.errno])
"""
# A file system that no kernel has: nothing is ever mounted.
_MOUNT = r"""
said("mount", call("mount", b"none\0", b"/\0", b"agentd-none\0", 0, 0))
"""
_NEW_MOUNT = r"""
said("fsopen", call("fsopen", b"agentd-none\0", 0))
if os.getuid():  # root of a sandbox may, and reaches nothing by it
    said("chroot", in_child(lambda: call("chroot", b"/\0")))
"""
# The whiteout 0:0 is no device, and the kernel lets anyone make one.
_DEVICE = """
os.chdir(os.environ.get("TMPDIR", "/tmp"))
for name, major, minor in (("null", 1, 3), ("whiteout", 0, 0)):
    got = tried(os.mknod, name, 0o20000, os.makedev(major, minor))
    said(name, got)
    if got is None:
        os.unlink(name)
"""
# Opened for writing and closed again: nothing is written.
_SYSCTL = """
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe",
             "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper"):
    said(path, opens(path, os.O_WRONLY))
"""
_OWN_PROC = """
for path in ("/proc/self/oom_score_adj", "/proc/self/coredump_filter"):
    said(path, opens(path, os.O_WRONLY))
"""
_INT80 = """
import mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid of i386); int 0x80; ret
where = ctypes.addressof(ctypes.c_char.from_buffer(page))
said("i386", in_child(lambda: ctypes.CFUNCTYPE(ctypes.c_int)(where)()))
"""
_X32 = 'said("x32", in_child(lambda: call(0x40000000 | NR["getpid"])))'
_TERMINAL = """
import fcntl, termios
said("TIOCSTI", tried(fcntl.ioctl, 0, termios.TIOCSTI, b"x"))
said("TIOCSTI, high bits", call("ioctl", 0, 1 << 32 | termios.TIOCSTI, b"x"))
said("TIOCLINUX", tried(fcntl.ioctl, 0, 0x541C, b"\\x03"))
said("TIOCSETD", tried(fcntl.ioctl, 0, 0x5423, struct.pack("i", 0)))
"""


_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_BOOTED = f"""
import time
try:
    with open({_BOOT_ID!r}) as file:
        said("boot", file.read().strip())
except OSError:
    pass
said("seconds", time.clock_gettime(time.CLOCK_BOOTTIME))
"""
_APART = 10.0  # seconds between the starts of two kernels, at least


def _just_booted(_: Planted) -> str:
    seconds = time.clock_gettime(time.CLOCK_BOOTTIME)
    return "" if seconds > 2 * _APART else "this machine has only just booted"


def _judge_booted(seen: AttackOutcome) -> Judged:
    if (early := unfinished(seen)) is not None:
        return early
    here = time.clock_gettime(time.CLOCK_BOOTTIME)
    with contextlib.suppress(OSError), open(_BOOT_ID, encoding="ascii") as file:
        if seen.said.get("boot") == file.read().strip():
            return Verdict.THROUGH, "its kernel has the host's boot id: it is the host's"
    apart = here - float(seen.said["seconds"])
    if abs(apart) < _APART:
        return Verdict.THROUGH, "its kernel was booted when the host's was: it is the host's"
    return Verdict.STOPPED, f"a kernel that was booted {abs(apart):.0f} s apart from the host's"


def _no_i386(_: Planted) -> str:
    machine = platform.machine()
    return "" if machine == "x86_64" else f"{machine} kernels have no such second set of calls"


def _judge_i386(seen: AttackOutcome) -> Judged:
    early = unfinished(seen)
    if early is not None:
        return early
    if seen.said["i386"] == "SIGSEGV":
        return Verdict.NOT_APPLICABLE, "this kernel has no i386 calls"
    stopped = seen.said["i386"] == "SIGSYS"
    return (Verdict.STOPPED if stopped else Verdict.THROUGH), shown(seen.said)


_attack = partial(Attack, otherwise="it is the machine's own kernel that is reached")
ATTACKS = (
    Attack(
        "have the host's kernel",
        _BOOTED,
        {
            IsolationLevel.NONE: ("isolation",),
            IsolationLevel.USERSPACE_KERNEL: ("userspace_kernel",),
            IsolationLevel.MICROVM: ("virtual_machine",),
        },
        _judge_booted,
        otherwise="it shares the host's kernel, as its level says",
        absent=_just_booted,
    ),
    _attack("use bpf, perf and userfaultfd", _SURFACE, FILTERED),
    _attack("use io_uring", _IO_URING, FILTERED),
    _attack("use keyrings", _KEYS, FILTERED),
    _attack("set the clock", _CLOCK, FILTERED),
    _attack("lease a file, so that whoever opens it waits", _LEASE, FILTERED),
    _attack("use up what the kernel has for all: filters, pipe buffers", _SHARED, FILTERED),
    _attack(
        "read the machine's keys, command line and interrupts in /proc",
        _PROC_FACTS,
        by("landlock", "mount_namespace", ""),
        refused("empty"),
    ),
    _attack("use other rare system calls", _OTHERS, FILTERED, thorough=True),
    _attack(
        "reboot the machine, rename it",
        _OWNER,
        by("seccomp capabilities user", "seccomp capabilities", ""),
        root=True,
    ),
    _attack("call the kernel as an i386 program", _INT80, FILTERED, _judge_i386, absent=_no_i386),
    _attack(
        "call the kernel as an x32 program", _X32, FILTERED, said_only({"SIGSYS"}), absent=_no_i386
    ),
    _attack(
        "mount a file system",
        _MOUNT,
        by("seccomp landlock capabilities user", "seccomp landlock capabilities", ""),
        root=True,
    ),
    _attack(
        "prepare a mount, change the root",
        _NEW_MOUNT,
        by("seccomp capabilities user", "seccomp capabilities", ""),
        root=True,
    ),
    _attack(
        "make a device node", _DEVICE, by("seccomp landlock", "seccomp landlock", ""), root=True
    ),
    _attack(
        "write the kernel's settings in /proc/sys",
        _SYSCTL,
        by("landlock user", "landlock user_namespace", ""),
        root=True,
    ),
    _attack("write in its own /proc", _OWN_PROC, by("landlock", "landlock", ""), root=True),
    _attack("type into a terminal", _TERMINAL, FILTERED, terminal=True),
)
