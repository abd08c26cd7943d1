"""What each profile denies, as data. What is not named here is allowed."""

import errno

from agentd.linux.seccomp.rule import Match, Rule, not_zero

_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_RAW, _SOCK_PACKET = 1, 2, 3, 10
_SOCK_TYPE_MASK = 0xF  # linux/net.h: the bits above are SOCK_CLOEXEC and SOCK_NONBLOCK
_PROTOCOLS = (0, 1, 6, 17, 58)  # default (and PF_UNIX), ICMP (and PF_UNIX), TCP, UDP, ICMPv6
# NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. NEWTIME (0x80) lies in the byte that
# is clone(2)'s exit signal, so only clone3 and unshare can ask for it.
_CLONE_NEW = 0x7E020000
_S_IFMT, _S_IFCHR, _S_IFBLK = 0xF000, 0x2000, 0x6000
_S_ISUID_ISGID = 0o6000
_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423
_PER_LINUX, _UNAME26, _PER_QUERY = 0, 0x20000, 0xFFFFFFFF
_PR_SET_MM = 35
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
_PRIO_USER, _IOPRIO_WHO_USER = 2, 3

# linux/fscrypt.h: FS_IOC_ADD_ENCRYPTION_KEY, _REMOVE_ENCRYPTION_KEY, _REMOVE_..._KEY_ALL_USERS
_FSCRYPT_KEYS = (0xC0506617, 0xC0406618, 0xC0406619)

_SANDBOX = (
    Rule(
        "mount",
        "mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig "
        "fsmount fspick mount_setattr",
        "a changed mount table or root uncovers what the sandbox's own root hides",
    ),
    Rule(
        "mount",
        "statmount listmount listns",
        "they tell of mounts and namespaces outside without a path that could be withheld",
    ),
    Rule(
        "namespaces",
        "setns unshare",
        "a new user namespace gives every capability back inside it, and with them kernel code "
        "that only root was meant to reach; setns leaves the sandbox",
    ),
    Rule(
        "namespaces",
        "clone",
        "the same namespaces by the other door; plain fork and thread creation pass",
        (not_zero(0, "flags", _CLONE_NEW),),
    ),
    Rule(
        "namespaces",
        "clone3",
        "its flags are in memory, where a filter cannot read them; the C library falls back to "
        "clone on ENOSYS",
        code=errno.ENOSYS,
    ),
    Rule(
        "kernel surface",
        "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register",
        "large interfaces with a long record of kernel exploits; io_uring also does its work "
        "past this filter",
    ),
    Rule(
        "kernel surface",
        "modify_ldt lookup_dcookie uselib ustat sysfs _sysctl nfsservctl vhangup",
        "obsolete or for the machine's owner, and each kept bugs that nobody looked for",
    ),
    Rule(
        "keyrings",
        "add_key request_key keyctl",
        "keyrings belong to the user, not to a namespace, and can hold the host's keys",
    ),
    Rule(
        "keyrings",
        "ioctl",
        "keys of encrypted directories are the user's too: any file of the file system is enough "
        "to add one, or to take one away and lock the host's files",
        (Match(1, "request", _FSCRYPT_KEYS),),
    ),
    Rule(
        "machine",
        "kexec_load kexec_file_load init_module finit_module delete_module create_module "
        "get_kernel_syms query_module reboot swapon swapoff syslog acct quotactl quotactl_fd "
        "iopl ioperm sethostname setdomainname",
        "they run or reveal the whole machine; capabilities deny them too, this is the second lock",
    ),
    Rule(
        "clock",
        "settimeofday clock_settime clock_adjtime adjtimex",
        "the clock is the whole machine's",
    ),
    Rule(
        "other processes",
        "ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp",
        "they read or change the memory and descriptors of another process of the same user",
    ),
    Rule(
        "other processes",
        "move_pages migrate_pages",
        "they move another process's memory, and tell where it lies",
    ),
    Rule(
        "files past the root",
        "open_by_handle_at name_to_handle_at",
        "a file handle opens a file of the file system that no path in the sandbox reaches",
    ),
    Rule(
        "files past the root",
        "fanotify_init",
        "it watches a whole file system and hands out descriptors to what others open",
    ),
    Rule(
        "devices",
        "mknod",
        "a device node reaches the hardware; fifos, sockets and plain files pass",
        (Match(1, "mode", (_S_IFCHR, _S_IFBLK), _S_IFMT),),
    ),
    Rule(
        "devices",
        "mknodat",
        "a device node reaches the hardware; fifos, sockets and plain files pass",
        (Match(2, "mode", (_S_IFCHR, _S_IFBLK), _S_IFMT),),
    ),
    Rule(
        "set-id bits",
        "chmod fchmod",
        "a writable workspace's files belong to its owner on the host: a set-id program there "
        "would hand out that user to everyone on the host",
        (not_zero(1, "mode", _S_ISUID_ISGID),),
    ),
    Rule(
        "set-id bits",
        "fchmodat fchmodat2",
        "as chmod; what open(2) makes with such a bit loses it on the first write",
        (not_zero(2, "mode", _S_ISUID_ISGID),),
    ),
    Rule(
        "set-id bits",
        "mknod",
        "as chmod, on a new file",
        (not_zero(1, "mode", _S_ISUID_ISGID),),
    ),
    Rule(
        "set-id bits",
        "mknodat",
        "as chmod, on a new file",
        (not_zero(2, "mode", _S_ISUID_ISGID),),
    ),
    Rule(
        "terminal",
        "ioctl",
        "TIOCSTI and TIOCLINUX type into the terminal that started the sandbox; TIOCSETD loads "
        "line disciplines, which have had exploits. The kernel cuts the request to 32 bits",
        (Match(1, "request", (_TIOCSTI, _TIOCLINUX, _TIOCSETD)),),
    ),
    Rule(
        "process attributes",
        "personality",
        "other execution domains switch off address randomisation and map page zero",
        (Match(0, "persona", (_PER_LINUX, _UNAME26, _PER_QUERY), inside=False),),
    ),
    Rule(
        "process attributes",
        "prctl",
        "PR_SET_MM forges what /proc says of the process, its executable and arguments included",
        (Match(0, "option", (_PR_SET_MM,)),),
    ),
    Rule(
        "process attributes",
        "seccomp",
        "a listener decides system calls of its children in user space, where they can be changed "
        "after the check; plain filters pass",
        (not_zero(1, "flags", _SECCOMP_FILTER_FLAG_NEW_LISTENER),),
    ),
    Rule(
        "process attributes",
        "lsm_set_self_attr",
        "it asks for another security label",
    ),
    Rule(
        "sockets",
        "socket socketpair",
        "packet, netlink, vsock, AF_ALG and the rest reach the host or seldom-tested kernel code",
        (Match(0, "family", (_AF_UNIX, _AF_INET, _AF_INET6), inside=False),),
        errno.EAFNOSUPPORT,
    ),
    Rule(
        "sockets",
        "socket socketpair",
        "raw sockets forge packets and read those of others",
        (Match(1, "type", (_SOCK_RAW, _SOCK_PACKET), _SOCK_TYPE_MASK),),
    ),
    Rule(
        "sockets",
        "socket socketpair",
        "the other internet socket types load SCTP and DCCP, seldom-tested kernel code",
        (
            Match(0, "family", (_AF_INET, _AF_INET6)),
            Match(1, "type", (_SOCK_STREAM, _SOCK_DGRAM), _SOCK_TYPE_MASK, inside=False),
        ),
        errno.ESOCKTNOSUPPORT,
    ),
    Rule(
        "sockets",
        "socket socketpair",
        "SCTP, SMC and the rest are seldom tested, and they and MPTCP pass Landlock's TCP rules",
        (Match(2, "protocol", _PROTOCOLS, inside=False),),
        errno.EPROTONOSUPPORT,
    ),
)

_PROCESS = (
    Rule(
        "sockets",
        "socket",
        "Landlock does not govern connecting to a unix socket by its path, and the user's bus, "
        "agents and container engines listen on those; socketpair passes",
        (Match(0, "family", (_AF_UNIX,)),),
    ),
    Rule(
        "sockets",
        "socketpair",
        "a datagram pair can be connected anew, and sends to any unix socket by its path, the "
        "system log's and service manager's among them; other pairs stay what they are",
        (
            Match(0, "family", (_AF_UNIX,)),
            Match(1, "type", (_SOCK_DGRAM,), _SOCK_TYPE_MASK),
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
        "setpriority",
        "who 0 of PRIO_USER is every process of the calling user, on the host too",
        (Match(0, "which", (_PRIO_USER,)),),
    ),
    Rule(
        "same user's processes",
        "ioprio_set",
        "who 0 of IOPRIO_WHO_USER is every process of the calling user, on the host too",
        (Match(0, "which", (_IOPRIO_WHO_USER,)),),
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

_SAME_UID = (
    Rule(
        "owned files",
        "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat",
        "the command's user owns host files, and Landlock does not govern mode and owner",
    ),
    Rule(
        "owned files",
        "setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr "
        "removexattrat file_setattr",
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
        (Match(1, "request", _OWNER_IOCTLS),),
    ),
)

#: sandbox: behind namespaces of its own. process: shares the host's pid and ipc namespaces.
#: process-same-uid: and runs as a user that owns host files.
PROFILES: dict[str, tuple[Rule, ...]] = {
    "sandbox": _SANDBOX,
    "process": _SANDBOX + _PROCESS,
    "process-same-uid": _SANDBOX + _PROCESS + _SAME_UID,
}

#: Added to any profile whose wall has no network namespace and promises no network.
NO_INET = Rule(
    "sockets",
    "socket socketpair",
    "no network was granted, and Landlock governs TCP alone",
    (Match(0, "family", (_AF_INET, _AF_INET6)),),
)
