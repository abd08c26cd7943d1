"""What the profiles of the process level deny besides: those walls share the host's namespaces."""

import errno

from agentd.linux.seccomp.rule import ArgumentMatch, Rule, not_zero

_AF_UNIX = 1
_SOCK_DGRAM, _SOCK_TYPE_MASK = 2, 0xF
# linux/pidfd.h: _IOWR(0xFF, 11, struct pidfd_info), without direction and size
_PIDFD_GET_INFO, _IOC_TYPE_NR = 0xFF0B, 0xFFFF

PROCESS = (
    Rule(
        "sockets",
        "socket",
        "Landlock does not govern connecting to a unix socket by its path, and the user's bus, "
        "agents and container engines listen on those; socketpair passes",
        (ArgumentMatch(0, "family", (_AF_UNIX,)),),
    ),
    Rule(
        "sockets",
        "socketpair",
        "a datagram pair can be connected anew, and sends to any unix socket by its path, the "
        "system log's and service manager's among them; other pairs stay what they are",
        (
            ArgumentMatch(0, "family", (_AF_UNIX,)),
            ArgumentMatch(1, "type", (_SOCK_DGRAM,), _SOCK_TYPE_MASK),
        ),
    ),
    Rule(
        "same user's processes",
        "prlimit64 sched_setaffinity sched_setscheduler sched_setparam sched_setattr",
        "with no pid namespace a pid may be a host process of the same user; 0 is the caller",
        (not_zero(0, "pid"),),
    ),
    Rule(
        "same user's processes",
        "setpriority ioprio_set",
        "with no pid namespace who may be a host process or user; 0 is the caller",
        (not_zero(1, "who"),),
    ),
    Rule(
        "same user's processes",
        "getsid",
        "with no pid namespace it tells of the sessions of the host; 0 is the caller",
        (not_zero(0, "pid"),),
    ),
    Rule(
        "same user's processes",
        "ioctl",
        "PIDFD_GET_INFO tells the user, parent and control group of any process of the host; "
        "ENOTTY as on a kernel before it (Linux 6.13), whatever size its structure has",
        (ArgumentMatch(1, "request", (_PIDFD_GET_INFO,), _IOC_TYPE_NR),),
        errno.ENOTTY,
    ),
    Rule(
        "others' files",
        "setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr "
        "removexattrat",
        "whoever may write a file may give it attributes, on the host too, and Landlock does not "
        "govern them; EOPNOTSUPP as on a file system without them, where cp and install go on",
        code=errno.EOPNOTSUPP,
    ),
    Rule(
        "host's IPC",
        "shmget shmat shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl "
        "mq_open mq_unlink",
        "with no ipc namespace they open the same user's segments and queues on the host, which "
        "Landlock does not govern; ENOSYS as on a kernel built without them",
        code=errno.ENOSYS,
    ),
)

# What an owner may do to a file through a read-only descriptor (ioctl_iflags(2), fscrypt,
# fs-verity, btrfs-ioctl(2)).
_OWNER_IOCTLS = (
    0x40086602,  # FS_IOC_SETFLAGS
    0x40087602,  # FS_IOC_SETVERSION
    0x401C5820,  # FS_IOC_FSSETXATTR
    0x800C6613,  # FS_IOC_SET_ENCRYPTION_POLICY
    0x40806685,  # FS_IOC_ENABLE_VERITY
    0x50009401,  # BTRFS_IOC_SNAP_CREATE
    0x5000940E,  # BTRFS_IOC_SUBVOL_CREATE
    0x5000940F,  # BTRFS_IOC_SNAP_DESTROY
    0x50009417,  # BTRFS_IOC_SNAP_CREATE_V2
    0x50009418,  # BTRFS_IOC_SUBVOL_CREATE_V2
    0x4008941A,  # BTRFS_IOC_SUBVOL_SETFLAGS
    0xC0C89425,  # BTRFS_IOC_SET_RECEIVED_SUBVOL
    0x5000943F,  # BTRFS_IOC_SNAP_DESTROY_V2
)

SAME_UID = (
    Rule(
        "owned files",
        "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat",
        "the command's user owns host files, and Landlock does not govern mode and owner",
    ),
    Rule(
        "owned files",
        "file_setattr",
        "the command's user owns host files, and Landlock does not govern attributes",
    ),
    Rule(
        "owned files",
        "utime utimes utimensat futimesat",
        "the command's user owns host files, and Landlock does not govern times",
    ),
    Rule(
        "owned files",
        "ioctl",
        "flags, encryption, verity and subvolumes of owned files by ioctl, which Landlock governs "
        "for devices only",
        (ArgumentMatch(1, "request", _OWNER_IOCTLS),),
    ),
)
