"""What each profile denies, as data. What is not named here is allowed."""

import errno

from agentd.linux.seccomp.memory_rules import UNCOUNTED
from agentd.linux.seccomp.process_rules import PROCESS, SAME_UID
from agentd.linux.seccomp.rule import ArgumentMatch, Rule, greater, not_zero
from agentd.linux.seccomp.set_id_rules import SET_ID
from agentd.linux.seccomp.socket_rules import SOCKETS, SOCKETS_AND_ROUTES
from agentd.linux.seccomp.trace_rules import NO_TRACING, TRACING

# NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. NEWTIME (0x80) lies in the byte that
# is clone(2)'s exit signal, so only clone3 and unshare can ask for it.
_CLONE_NEW = 0x7E020000
_S_IFMT, _S_IFCHR, _S_IFBLK = 0xF000, 0x2000, 0x6000
_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423
_PER_LINUX, _UNAME26, _PER_QUERY = 0, 0x20000, 0xFFFFFFFF
_PR_SET_MM = 35
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
# asm-generic/mman-common.h, linux/memfd.h, linux/shm.h
_MAP_HUGETLB, _MFD_HUGETLB, _SHM_HUGETLB = 0x40000, 4, 0o4000
# linux/resource.h, linux/ioprio.h: "who" is a user
_PRIO_USER, _IOPRIO_WHO_USER = 2, 3
# The agent is PID 1 of its namespace, and has one thread.
_AGENT = (1,)
# linux/fcntl.h; F_SETDELEG since Linux 6.19
_F_SETLEASE, _F_NOTIFY, _F_SETPIPE_SZ, _F_SETDELEG = 1024, 1026, 1031, 1040
_PIPE_BYTES = 65536  # what a pipe begins with (pipe(7))
# asm-generic/socket.h: SO_ATTACH_FILTER, _BPF, _REUSEPORT_CBPF, _REUSEPORT_EBPF
_SOL_SOCKET, _SO_ATTACH = 1, (26, 50, 51, 52)
_SOL_TCP, _TCP_ULP = 6, 31
# linux/sockios.h: SIOCGIFBR, _SIFBR, _BRADDBR, _BRDELBR; SIOCGIFVLAN, _SIFVLAN
_BRIDGES, _VLANS = (0x8940, 0x8941, 0x89A0, 0x89A1), (0x8982, 0x8983)
# A UDP socket takes SOL_UDPLITE for its own level, too (udp_setsockopt() in the kernel).
_SOL_UDP, _SOL_UDPLITE, _UDP_ENCAP = 17, 136, 100
_IPPROTO_IPV6, _IPV6_FLOWLABEL_MGR = 41, 32  # linux/in.h, linux/in6.h

# linux/fscrypt.h: FS_IOC_ADD_ENCRYPTION_KEY, _REMOVE_ENCRYPTION_KEY, _REMOVE_..._KEY_ALL_USERS
_FSCRYPT_KEYS = (0xC0506617, 0xC0406618, 0xC0406619)

# Root of a sandbox may: it is in a root of its own already, and gains no right by another.
_NO_CHROOT = Rule(
    "mount",
    "chroot",
    "whoever has a directory open outside of a root can leave it; it takes root anyway",
)
#: No command is in another namespace than the sandbox has, nor has what is had in one of its own.
NAMESPACES = (
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
)
_COMMON = (
    Rule(
        "mount",
        "mount umount2 pivot_root open_tree open_tree_attr move_mount fsopen fsconfig "
        "fsmount fspick mount_setattr",
        "a changed mount table or root uncovers what the sandbox's own root hides",
    ),
    Rule(
        "mount",
        "statmount listmount listns",
        "they tell of mounts and namespaces outside without a path that could be withheld",
    ),
    *NAMESPACES,
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
        "kernel surface",
        "memfd_secret",
        "it takes pages out of the kernel's own map, which slows down the whole machine",
    ),
    Rule(
        "kernel surface",
        "setsockopt",
        "a filter is compiled into memory that is bounded for the whole machine and charged to "
        "nobody (net.core.bpf_jit_limit): when it is used up, no sandbox can be made",
        (ArgumentMatch(1, "level", (_SOL_SOCKET,)), ArgumentMatch(2, "optname", _SO_ATTACH)),
    ),
    Rule(
        "kernel surface",
        "setsockopt",
        "TCP_ULP loads kernel modules (tls, smc) that few programs use, and which do without it",
        (ArgumentMatch(1, "level", (_SOL_TCP,)), ArgumentMatch(2, "optname", (_TCP_ULP,))),
    ),
    Rule(
        "kernel surface",
        "ioctl",
        "on any socket and before any capability is asked for, these load kernel modules (bridge, "
        "8021q)",
        (ArgumentMatch(1, "request", (*_BRIDGES, *_VLANS)),),
    ),
    Rule(
        "kernel surface",
        "setsockopt",
        "UDP_ENCAP is for IPsec and L2TP daemons, and reaches their kernel code",
        (
            ArgumentMatch(1, "level", (_SOL_UDP, _SOL_UDPLITE)),
            ArgumentMatch(2, "optname", (_UDP_ENCAP,)),
        ),
    ),
    Rule(
        "machine's counts",
        "io_setup",
        "its events are counted for the whole machine (fs.aio-max-nr), and one sandbox could have "
        "all of them; ENOSYS as on a kernel built without it, and databases do without",
        code=errno.ENOSYS,
    ),
    Rule(
        "machine's counts",
        "setsockopt",
        "the machine has 4096 flow labels of IPv6, and one sandbox could have half of them, after "
        "which nobody gets one; few programs ask for them",
        (
            ArgumentMatch(1, "level", (_IPPROTO_IPV6,)),
            ArgumentMatch(2, "optname", (_IPV6_FLOWLABEL_MGR,)),
        ),
    ),
    Rule(
        "machine's counts",
        "mmap",
        "huge pages are set aside for programs of the host, and no control group of memory counts "
        "them; ENOMEM as where there are none",
        (not_zero(3, "flags", _MAP_HUGETLB),),
        errno.ENOMEM,
    ),
    Rule(
        "machine's counts",
        "memfd_create",
        "as mmap: huge pages are the host's",
        (not_zero(1, "flags", _MFD_HUGETLB),),
        errno.ENOMEM,
    ),
    Rule(
        "machine's counts",
        "shmget",
        "as mmap; ENOSYS as on a kernel built without huge pages",
        (not_zero(2, "shmflg", _SHM_HUGETLB),),
        errno.ENOSYS,
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
        (ArgumentMatch(1, "request", _FSCRYPT_KEYS),),
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
    Rule("other processes", "process_madvise", "it changes another process's memory"),
    Rule(
        "other processes",
        "move_pages migrate_pages",
        "they move another process's memory, and tell where it lies",
    ),
    Rule(
        "the agent",
        "prlimit64 sched_setaffinity sched_setscheduler sched_setparam sched_setattr",
        "of PID 1, the agent of the sandbox: a limit of none or an idle scheduler lets it start "
        "no command any more; 0 and other processes pass",
        (ArgumentMatch(0, "pid", _AGENT),),
    ),
    Rule(
        "the agent",
        "setpriority ioprio_set",
        "of PID 1, as a process or as a group; 0 and others pass",
        (ArgumentMatch(1, "who", _AGENT),),
    ),
    Rule(
        "the agent",
        "setpriority",
        "all processes of a user are the agent's too, and at the process level those of the host",
        (ArgumentMatch(0, "which", (_PRIO_USER,)),),
    ),
    Rule(
        "the agent",
        "ioprio_set",
        "all processes of a user are the agent's too, and at the process level those of the host",
        (ArgumentMatch(0, "which", (_IOPRIO_WHO_USER,)),),
    ),
    Rule(
        "others' files",
        "fcntl",
        "whoever opens a file with a lease or a delegation waits for its holder, on the host and "
        "through read-only mounts; dnotify tells of what others do. Only file servers use them",
        (ArgumentMatch(1, "cmd", (_F_SETLEASE, _F_NOTIFY, _F_SETDELEG)),),
    ),
    Rule(
        "others' files",
        "fcntl",
        "the buffers of a user's pipes are counted together, and new ones are small when they are "
        "used up: larger than a new pipe's none becomes",
        (ArgumentMatch(1, "cmd", (_F_SETPIPE_SZ,)), greater(2, "size", _PIPE_BYTES)),
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
        (ArgumentMatch(1, "mode", (_S_IFCHR, _S_IFBLK), _S_IFMT),),
    ),
    Rule(
        "devices",
        "mknodat",
        "a device node reaches the hardware; fifos, sockets and plain files pass",
        (ArgumentMatch(2, "mode", (_S_IFCHR, _S_IFBLK), _S_IFMT),),
    ),
    Rule(
        "terminal",
        "ioctl",
        "TIOCSTI and TIOCLINUX type into the terminal that started the sandbox; TIOCSETD loads "
        "line disciplines, which have had exploits. The kernel cuts the request to 32 bits",
        (ArgumentMatch(1, "request", (_TIOCSTI, _TIOCLINUX, _TIOCSETD)),),
    ),
    Rule(
        "process attributes",
        "personality",
        "other execution domains switch off address randomisation and map page zero",
        (ArgumentMatch(0, "persona", (_PER_LINUX, _UNAME26, _PER_QUERY), inside=False),),
    ),
    Rule(
        "process attributes",
        "prctl",
        "PR_SET_MM forges what /proc says of the process, its executable and arguments included",
        (ArgumentMatch(0, "option", (_PR_SET_MM,)),),
    ),
    Rule(
        "process attributes",
        "seccomp",
        "a listener decides system calls of its children in user space, where they can be changed "
        "after the check; plain filters pass",
        (not_zero(1, "flags", _SECCOMP_FILTER_FLAG_NEW_LISTENER),),
    ),
    Rule("process attributes", "lsm_set_self_attr", "it asks for another security label"),
)

_SHARED = (*_COMMON, _NO_CHROOT, *NO_TRACING, *SOCKETS)
_OWN_NET_ROOT = _COMMON + UNCOUNTED + TRACING + SOCKETS_AND_ROUTES
_OWN_NET = (*_OWN_NET_ROOT, _NO_CHROOT)
_HOST_NET_ROOT = _COMMON + UNCOUNTED + TRACING + SOCKETS
_HOST_NET = (*_HOST_NET_ROOT, _NO_CHROOT)

#: sandbox: behind namespaces of its own, the network's among them. -host-net: shares the host's
#: network. -root: commands are root inside. -rw: writes to a folder of the host's.
#: monitor: of a virtual machine. share: virtiofsd's, for a virtual machine: what a guest asks of a
#: folder of the host's is done by a server of files, which needs the rest. runsc's, too.
#: unpack: skopeo's and umoci's, which fetch images, and make their files as the images have them,
#: in a folder that nobody else enters.
#: process: shares the host's pid and ipc namespaces.
#: process-same-uid: and runs as a user that owns host files.
PROFILES: dict[str, tuple[Rule, ...]] = {
    "sandbox": _OWN_NET,
    "sandbox-rw": _OWN_NET + SET_ID,
    "sandbox-root": _OWN_NET_ROOT,
    "sandbox-root-rw": _OWN_NET_ROOT + SET_ID,
    "sandbox-host-net": _HOST_NET,
    "sandbox-host-net-rw": _HOST_NET + SET_ID,
    "sandbox-host-net-root": _HOST_NET_ROOT,
    "sandbox-host-net-root-rw": _HOST_NET_ROOT + SET_ID,
    "monitor": _SHARED + SET_ID,
    "share": SET_ID,
    "unpack": _SHARED,
    "process": _SHARED + SET_ID + PROCESS,
    "process-same-uid": _SHARED + SET_ID + PROCESS + SAME_UID,
}


def of_namespaces(net: str, *, rw: bool, root: bool = False) -> str:
    """Names the profile of a sandbox of the namespace wall, with ``net`` "none", "restricted" or
    "host"; ``rw`` where a folder of the host's is mounted read-write, ``root`` where commands are
    uid 0 inside."""
    name = "sandbox-host-net" if net == "host" else "sandbox"
    return name + "-root" * root + "-rw" * rw
