"""Detached copies of mounts, to be attached in another mount namespace; and where mounts are."""

import errno
import os
import re

from agentd.linux import abi
from agentd.linux.kernel import KERNEL, Kernel


def clone_tree(
    source: str | int,
    *,
    readonly: bool,
    idmap_fd: int | None = None,
    recursive: bool = True,
    kernel: Kernel = KERNEL,
) -> int:
    """Makes a detached bind mount of ``source``, nosuid and nodev; the caller owns the descriptor.

    What is mounted beneath ``source`` later stays out of it: that would be none of these things.

    A descriptor (O_PATH does) stands for what it is open on, whatever its name means by now.
    With ``idmap_fd``, a user namespace, owners are translated through its map (Linux 5.12; root
    only; EINVAL where the filesystem has none), and mounts beneath ``source`` are left out: each
    would need a map of its own. Without it they come along, since an unprivileged copy must not
    uncover what they hide; the machine's root may leave them out (``recursive`` False). Raises
    OSError.
    """
    depth = abi.AT_RECURSIVE if recursive and idmap_fd is None else 0
    flags = abi.OPEN_TREE_CLONE | abi.OPEN_TREE_CLOEXEC | depth
    if isinstance(source, int):
        fd = kernel.open_tree(source, "", flags | abi.AT_EMPTY_PATH)
    else:
        fd = kernel.open_tree(abi.AT_FDCWD, source, flags)
    attributes = abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV
    if readonly:
        attributes |= abi.MOUNT_ATTR_RDONLY
    if idmap_fd is not None:
        attributes |= abi.MOUNT_ATTR_IDMAP
    try:
        kernel.mount_setattr(
            fd,
            "",
            abi.AT_EMPTY_PATH | depth,
            set_=attributes,
            propagation=abi.MS_PRIVATE,
            userns_fd=idmap_fd or 0,
        )
    except OSError:
        os.close(fd)
        raise
    return fd


def id_of(fd: int) -> str:
    """Tells the mount that ``fd`` is open on, by its number in mountinfo. Raises OSError."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("mnt_id:"):
                return line.removeprefix("mnt_id:").strip()
    raise OSError(errno.ENOSYS, "the kernel does not tell on which mount a descriptor is open")


def filesystem(fd: int) -> str:
    """Tells the type of the file system that ``fd`` is open on, as mountinfo has it: "overlay"."""
    try:
        wanted = id_of(fd)
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                if line.split(" ", 1)[0] == wanted:
                    return line.rpartition(" - ")[2].split()[0]
    except OSError:
        pass
    return "its file system"


def points() -> list[str]:
    """Returns the path of each mount that this process sees. Raises OSError."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return [unescaped(line.split()[4]) for line in file]


def kind_of(path: str) -> tuple[str, str]:
    """Returns ``(type, options)`` of the filesystem that a file lies on, the latter its own, as
    mountinfo tells them; empty where it tells nothing of it, as of a btrfs subvolume. Raises
    OSError."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if left.split()[2] == wanted:
                kind, _, options = right.split(maxsplit=2)
                return kind, unescaped(options.strip())
    return "", ""


def unescaped(field: str) -> str:
    """Decodes a mountinfo's path, in which white space is octal (proc_pid_mountinfo(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
