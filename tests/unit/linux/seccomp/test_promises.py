"""What each profile denies, written down a second time: each call and each value by itself.

``test_filter`` compares the filter with the rules. Here a call or a value that an edit takes out of
the rules is missed.
"""

import errno

import pytest
from tests.unit.linux.seccomp.test_filter import ALLOW, ARCH, HIGH, Args, decode, fails, run

from agentd.linux.seccomp import build
from agentd.linux.seccomp.rule import ASK
from agentd.linux.seccomp.tables import MACHINES, numbers

_E, _SYS, _NONE = errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP
_P, _U = "process", "process-same-uid"
_H = "sandbox-host-net"
PROFILES = ("sandbox", _H, _P, _U)

# Whatever the arguments are.
DENIED = {
    "sandbox": (
        (
            "mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig "
            "fsmount fspick mount_setattr statmount listmount listns setns unshare "
            "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register "
            "modify_ldt lookup_dcookie uselib ustat sysfs _sysctl nfsservctl vhangup memfd_secret "
            "add_key request_key keyctl "
            "kexec_load kexec_file_load init_module finit_module delete_module create_module "
            "get_kernel_syms query_module reboot swapon swapoff syslog acct quotactl quotactl_fd "
            "iopl ioperm sethostname setdomainname "
            "settimeofday clock_settime clock_adjtime adjtimex "
            "process_madvise move_pages migrate_pages "
            "open_by_handle_at name_to_handle_at fanotify_init lsm_set_self_attr"
        ),
        _E,
    ),
    _P: (
        ("setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr removexattrat"),
        _NONE,
    ),
    "process: tracing": ("ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp", _E),
    "process: IPC": (
        (
            "shmget shmat shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl "
            "mq_open mq_unlink"
        ),
        _SYS,
    ),
    _U: (
        (
            "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat file_setattr "
            "utime utimes utimensat futimesat"
        ),
        _E,
    ),
}
_BY_MODE = (("mknod", 1), ("mknodat", 2))
_BY_BITS = (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("fchmodat2", 2), *_BY_MODE)
_OF_A_PROCESS = ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam",
                 "sched_setattr")  # fmt: skip
_OWNERS = (
    0x40086602, 0x40087602, 0x401C5820, 0x800C6613, 0x40806685, 0x50009401, 0x5000940E,
    0x5000940F, 0x50009417, 0x50009418, 0x4008941A, 0xC0C89425, 0x5000943F,
)  # fmt: skip


def at(index: int, value: int, otherwise: int = 0) -> Args:
    return tuple(value if n == index else otherwise for n in range(6))


BY_ARGUMENTS: list[tuple[str, str, Args, int]] = [
    *[("sandbox", name, at(i, kind | 0o666), code) for name, i in _BY_MODE
      for kind, code in ((0x2000, _E), (0x6000, _E), (0x1000, 0), (0x8000, 0), (0xC000, 0))],
    *[(profile, name, at(i, mode), 0)
      for profile in ("sandbox", _H, "unpack") for name, i in _BY_BITS
      for mode in (0o104755, 0o102755, 0o106755)],
    *[(profile, name, at(i, mode), code)
      for profile in ("sandbox-rw", f"{_H}-rw", "share", "monitor", _P)
      for name, i in _BY_BITS for mode, code in (
        (0o104755, _E), (0o102755, _E), (0o106755, _E), (0o101777, 0), (0o100777, 0),
    )],
    # The mode is where the kernel reads it, and nowhere else.
    *[("sandbox-rw", name, at(i, 0o100644, 0o106000), 0) for name, i in _BY_BITS],
    *[("sandbox", "socket", (16, kind, protocol), ASK if protocol == 0 else errno.EPROTONOSUPPORT)
      for kind in (2, 3, 0x80003) for protocol in (0, 4, 6, 9, 12, 16, HIGH | 9)],
    ("sandbox", "socket", (16 | HIGH, 3, HIGH), ASK),
    *[("sandbox", "socketpair", (16, 3, protocol), errno.EAFNOSUPPORT) for protocol in (0, 9)],
    *[(profile, "socket", (16, kind, protocol), errno.EOPNOTSUPP)
      for profile in (_H, "monitor", _P, _U) for kind in (2, 3) for protocol in (0, 9)],
    *[(_H, "socket", (family, 3, 0), errno.EAFNOSUPPORT) for family in (17, 38, 40)],
    *[("sandbox", "socket", (family, 3, 0), errno.EAFNOSUPPORT) for family in (15, 17, 38, 40)],
    *[(profile, "ptrace", (request | more, 7, 0, data), ASK if data & 0x40 else 0)
      for profile in ("sandbox", _H) for request in (0x4200, 0x4206, 21) for more in (0, HIGH)
      for data in (0, 1, 0x3F, 0x40, 0x51, HIGH | 0x40, 0x100000)],
    *[(profile, "ptrace", (request, 7, 0, 0x40), 0)
      for profile in ("sandbox", _H) for request in (0, 3, 7, 16, 17, 24, 0x4201, 0x4207)],
    *[("monitor", name, (0,) * 6, _E) for name in
      ("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp")],
    ("sandbox", "seccomp", (1, 0xF7), 0),
    *[("sandbox", "seccomp", (1, 8 | more), _E) for more in (0, 1, 16, HIGH)],
    *[("sandbox", name, (10, 1, 6), 0) for name in ("socket", "socketpair")],
    *[("sandbox", "socket", (2, 2, protocol), 0) for protocol in (0, 1, 17, 58)],
    *[("sandbox", name, (2, kind, 0), _E) for name in ("socket", "socketpair") for kind in (3, 10)],
    *[("sandbox", name, (family, 5, 0), errno.ESOCKTNOSUPPORT)
      for name in ("socket", "socketpair") for family in (2, 10)],
    *[("sandbox", name, (1, 1, protocol), errno.EPROTONOSUPPORT)
      for name in ("socket", "socketpair") for protocol in (2, 132, 256, 262)],
    *[("sandbox", "setsockopt", (3, level, 100), 0) for level in (0, 1, 6, 41)],
    *[(profile, "setsockopt", (3, 41, 32), _E) for profile in ("sandbox", _H, "monitor", _P)],
    *[("sandbox", "setsockopt", (3, 41, name), 0) for name in (6, 20, 31, 33)],
    *[(profile, name, (1, 2, 3, size), errno.ENOSPC if size % HIGH > 1024 else 0)
      for profile in ("sandbox", _H) for name in ("setxattr", "lsetxattr", "fsetxattr")
      for size in (0, 1, 1024, 1025, 65536, HIGH | 1024)],
    *[(profile, "setxattrat", (1, 2, 3, 4, 5, 16), code)
      for profile, code in (("sandbox", errno.ENOSYS), (_H, errno.ENOSYS), (_P, _NONE),
                            ("unpack", 0))],
    *[(_P, "socket", (1, kind, 0), _E) for kind in (1, 2, 5)],
    *[(_P, "socket", (family, 1, 0), 0) for family in (2, 10)],
    (_P, "socket", (2, 1 | 0x80000, 1), 0),
    *[(_P, "socketpair", (family, 2, 0), 0) for family in (2, 10)],
    *[(_P, name, at(0, pid, 1 - bool(pid)), _E if pid else 0)
      for name in _OF_A_PROCESS for pid in (0, 1, 2, 0xFFFFFFFF)],
    *[(_P, name, (1, who, 1 - bool(who)), _E if who else 0)
      for name in ("setpriority", "ioprio_set") for who in (0, 1, 2, 0xFFFFFFFF)],
    *[(_U, "ioctl", (3, request | HIGH), _E) for request in _OWNERS],
    *[(_U, "ioctl", (3, request), 0) for request in (0x5401, 0x5413, 0x80086601, 0x801C581F)],
    *[(_P, "ioctl", (3, request), 0) for request in _OWNERS],
]  # fmt: skip


def got(machine: str, profile: str, name: str, args: Args) -> int | None:
    """None where the machine has no such call."""
    number = numbers(machine).get(name)
    return (
        None
        if number is None
        else run(decode(build(profile, machine)), ARCH[machine], number, args)
    )


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("group", DENIED)
def test_what_is_denied_outright(machine: str, group: str) -> None:
    names, code = DENIED[group]
    least = group.partition(":")[0]
    for name in names.split():
        assert any(name in numbers(each) for each in MACHINES), name
        for profile in PROFILES:
            holds = PROFILES.index(profile) >= PROFILES.index(least)
            for args in ((0,) * 6, (1, 2, 3, 4, 5, 6), (2**64 - 1,) * 6):
                answer = got(machine, profile, name, args)
                assert not holds or answer in (fails(code), None), (profile, name, args)
    passes = PROFILES[: PROFILES.index(least)]
    assert all(got(machine, p, n, (0,) * 6) in (ALLOW, None) for p in passes for n in names.split())


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_denied_by_its_arguments(machine: str) -> None:
    for profile, name, args, code in BY_ARGUMENTS:
        wanted = fails(code) if code else ALLOW
        assert got(machine, profile, name, args) in (wanted, None), (profile, name, args)
