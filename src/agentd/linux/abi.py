"""Numbers of the kernel's ABI that Python does not have, from the uapi headers."""

import os


class _Common:
    """Calls added since Linux 5.1 have one number on every architecture."""

    open_tree = 428
    move_mount = 429
    fsopen = 430
    fsconfig = 431
    fsmount = 432
    fspick = 433
    clone3 = 435
    openat2 = 437
    mount_setattr = 442
    landlock_create_ruleset = 444
    landlock_add_rule = 445
    landlock_restrict_self = 446


class _X86_64(_Common):
    rt_sigaction = 13
    ptrace = 101
    socket = 41
    gettid = 186
    clone = 56
    prctl = 157
    mount = 165
    umount2 = 166
    pivot_root = 155
    unshare = 272
    setns = 308
    setgroups = 116
    capget = 125
    capset = 126
    sethostname = 170
    signalfd4 = 289
    renameat2 = 316
    statx = 332
    syncfs = 306
    seccomp = 317


class _AArch64(_Common):
    rt_sigaction = 134
    ptrace = 117
    socket = 198
    gettid = 178
    clone = 220
    prctl = 167
    statx = 291
    mount = 40
    umount2 = 39
    pivot_root = 41
    unshare = 97
    setns = 268
    setgroups = 159
    capget = 90
    capset = 91
    sethostname = 161
    signalfd4 = 74
    renameat2 = 276
    syncfs = 267
    seccomp = 277


_TABLES: dict[str, type[_X86_64] | type[_AArch64]] = {"x86_64": _X86_64, "aarch64": _AArch64}
MACHINE = os.uname().machine
SYS = _TABLES.get(MACHINE, _X86_64)
#: By number.
NAMES = {
    number: name
    for table in reversed(SYS.__mro__)
    for name, number in vars(table).items()
    if isinstance(number, int)
}

# linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

CLONE_VM = 0x00000100
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000
CLONE_CHILD_SETTID = 0x01000000
CLONE_INTO_CGROUP = 0x200000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x00100000
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7
FSPICK_CLOEXEC = 1
FSPICK_EMPTY_PATH = 8

PTRACE_DETACH = 17

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAPBSET_DROP = 24

PR_GET_DUMPABLE = 3
PR_CAPBSET_READ = 23
PR_CAP_AMBIENT_CLEAR_ALL = 4

LANDLOCK_CREATE_RULESET_VERSION = 1 << 0
LANDLOCK_RULE_PATH_BENEATH = 1
LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF = 1 << 0
LANDLOCK_RESTRICT_SELF_LOG_SUBDOMAINS_OFF = 1 << 2

SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
