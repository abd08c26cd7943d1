"""The read-only root that every sandbox of a zygote shares: the host's programs, none of its data.

Runs once, inside the zygote's own user, mount and pid namespaces. Standard library only.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

from agentd.guest.zygote import cgroup_view, var
from agentd.linux import abi, anyip, mounts
from agentd.linux.kernel import KERNEL

SANDBOX_HOME = "/home/sandbox"
# Host directories that hold programs and libraries. Symbolic links among them (merged /usr) are
# made again as links.
PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
# Parts of /etc that the loader and languages need, the least that is shown; which others are, the
# host finds out. /etc/ssl as a whole does not belong here: /etc/ssl/private holds keys.
ETC_TREES = (
    *("/etc/alternatives", "/etc/ca-certificates", "/etc/fonts", "/etc/java-17-openjdk"),
    *("/etc/java-21-openjdk", "/etc/ld.so.conf.d", "/etc/perl", "/etc/pki/ca-trust"),
    *("/etc/pki/tls/certs", "/etc/python3", "/etc/python3.11", "/etc/python3.12"),
    *("/etc/python3.13", "/etc/ssl/certs", "/etc/terminfo"),
)
ETC_FILES = (
    *("/etc/alpine-release", "/etc/arch-release", "/etc/ca-certificates.conf"),
    *("/etc/debian_version", "/etc/fedora-release", "/etc/inputrc", "/etc/ld.so.cache"),
    *("/etc/ld.so.conf", "/etc/locale.alias", "/etc/locale.conf", "/etc/localtime"),
    *("/etc/login.defs", "/etc/lsb-release", "/etc/magic", "/etc/mailcap"),
    *("/etc/manpath.config", "/etc/mime.types", "/etc/mke2fs.conf", "/etc/os-release"),
    *("/etc/papersize", "/etc/protocols", "/etc/redhat-release", "/etc/rpc", "/etc/screenrc"),
    *("/etc/services", "/etc/shells", "/etc/ssl/openssl.cnf", "/etc/timezone"),
    "/etc/xattr.conf",
)
ETC_MADE = {
    "/etc/group": "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 sandbox\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "/etc/passwd": (
        f"root:x:0:0:root:{SANDBOX_HOME}:/bin/sh\n"
        f"sandbox:x:1000:1000:sandbox:{SANDBOX_HOME}:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "/etc/profile": "PS1='$ '\n",
}
_RESOLVER = "/etc/resolv.conf"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEV_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_EMPTY = ("/proc", "/mnt", "/tmp", "/workspace", SANDBOX_HOME)
_EMPTY_DEV = ("/dev/pts", "/dev/shm", "/dev/mqueue")
# What a /proc tells of the whole machine: the user's keys by name, the kernel's command line, how
# busy each device is, the paths of swap files. An empty file or directory takes its place.
EMPTY_FILE = "/.agentd/empty"
EMPTY_FOLDER = "/.agentd/nothing"
# Empty, but in a sandbox that has certificates of its own (``certificates``).
CERTIFICATES = "/.agentd/certificates"
# How many processors there are, and of which kind, as /proc/cpuinfo has it: lscpu reads it here.
SYSFS = ("/sys/devices/system/cpu",)
_PROC_FILES = (
    *("bootconfig", "cmdline", "interrupts", "kcore", "key-users", "keys", "latency_stats"),
    *("sched_debug", "softirqs", "swaps", "timer_list", "timer_stats"),
)
_PROC_DIRECTORIES = ("acpi", "asound", "irq", "scsi")
# Any directory that exists everywhere: the new root is built on top of it, then pivoted into.
STAGE = "/tmp"

Tree = tuple[str, int]  # where it goes, a detached mount


def clone_trees(configuration: Sequence[str]) -> list[Tree]:
    """Detached read-only copies of what the root shows of the host: its programs, and of /etc and
    /var/lib the directories in ``configuration``.

    As root call it before privileges are dropped; otherwise inside the new user namespace.
    """
    trees = []
    for path in (*PROGRAMS, *configuration, *SYSFS):
        if os.path.isdir(path) and not os.path.islink(path):
            with suppress(FileNotFoundError):  # removed since
                trees.append((path, mounts.clone_tree(path, readonly=True)))
    for name in _DEVICES:
        path = f"/dev/{name}"
        fd = KERNEL.open_tree(-1, path, abi.OPEN_TREE_CLONE | abi.OPEN_TREE_CLOEXEC)
        KERNEL.mount_setattr(
            fd,
            "",
            abi.AT_EMPTY_PATH,
            set_=abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NOEXEC,
            propagation=abi.MS_PRIVATE,
        )
        trees.append((path, fd))
    return trees


@cache
def masks() -> tuple[tuple[str, str], ...]:
    """(what is empty, the path of /proc that it hides), for what this user can read here at all.

    Each is a mount in every sandbox: what the kernel keeps for its root needs none.
    """
    places = [(EMPTY_FILE, f"/proc/{name}") for name in _PROC_FILES]
    places += [(EMPTY_FOLDER, f"/proc/{name}") for name in _PROC_DIRECTORIES]
    return tuple((empty, path) for empty, path in places if os.access(path, os.R_OK))


def read_etc(
    net: str, hidden: Sequence[str] = (), nameserver: str = anyip.NAMESERVER
) -> dict[str, bytes]:
    """Returns contents of the small files of /etc. Of the "host" network its resolv.conf too; of a
    "restricted" one names are asked at ``nameserver``."""
    files = {path: text.encode() for path, text in ETC_MADE.items()}
    if net == "restricted":
        # What is asked between two relays waits for the next one, for as long as the C libraries
        # wait unless they are told otherwise: 10 seconds.
        files[_RESOLVER] = f"nameserver {nameserver}\n".encode()
    for path in (*ETC_FILES, *((_RESOLVER,) if net == "host" else ())):
        if path in hidden:
            continue
        try:
            with open(path, "rb") as file:
                files[path] = file.read(1 << 20)
        except OSError:
            continue  # absent on this distribution
    return files


def enter(trees: list[Tree], files: dict[str, bytes]) -> None:
    """Build the root on a tmpfs, pivot into it, make it read-only. Raises OSError."""
    KERNEL.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
    KERNEL.mount("tmpfs", STAGE, "tmpfs", abi.MS_NOSUID, "mode=0755,size=8m,nr_inodes=1k")
    skeleton(STAGE, trees, files)
    for path, fd in trees:
        target = STAGE + var.place(path)
        KERNEL.move_mount(fd, "", abi.AT_FDCWD, target, abi.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(fd)
    # A new proc needs a fully visible one already there; it shows the zygote's pid namespace.
    KERNEL.mount("proc", STAGE + "/proc", "proc", abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC)
    os.chdir(STAGE)
    KERNEL.pivot_root(".", ".")
    KERNEL.umount(".", abi.MNT_DETACH)
    os.chdir("/")
    KERNEL.mount_setattr(abi.AT_FDCWD, "/", 0, set_=abi.MOUNT_ATTR_RDONLY | abi.MOUNT_ATTR_NOSUID)


def skeleton(stage: str, trees: list[Tree], files: dict[str, bytes]) -> None:
    """Make the root's directories, links and small files, and the places of the trees."""
    for path in (*_EMPTY, "/dev", *_EMPTY_DEV, "/etc", EMPTY_FOLDER, CERTIFICATES):
        os.makedirs(stage + path, 0o755, exist_ok=True)
    cgroup_view.make(stage)
    var.make(stage, [path for path, _fd in trees if path.startswith("/var/")])
    for path in PROGRAMS:
        if os.path.islink(path):
            os.symlink(os.readlink(path), stage + path)
    write(stage + EMPTY_FILE, b"")
    os.symlink("/proc/self/mounts", stage + "/etc/mtab")
    for name, target in _DEV_LINKS.items():
        os.symlink(target, f"{stage}/dev/{name}")
    for path, data in files.items():
        os.makedirs(os.path.dirname(stage + path), 0o755, exist_ok=True)
        write(stage + path, data)
    for path, _fd in trees:
        if path.startswith("/dev/"):
            write(stage + path, b"")
        else:
            os.makedirs(stage + var.place(path), 0o755, exist_ok=True)


def write(path: str, data: bytes) -> None:
    """Make a file, readable to everybody. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as file:  # all of it: a write of one's own may be of a part
        file.write(data)
