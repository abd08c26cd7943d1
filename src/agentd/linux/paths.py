"""Opens host paths that other users may change meanwhile."""

import ctypes
import errno
import os
import stat

from agentd.linux import abi
from agentd.linux.kernel import KERNEL

# openat2(2), Linux 5.6.
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_plain(path: str) -> int:
    """Opens an O_PATH descriptor of an absolute path, through no symbolic link at all.

    Who judged the path by its text can rely on what is opened: a link that has been put into it
    since is refused. Raises OSError, ELOOP for such a link.
    """
    fd = os.open("/", _FOLDER)
    parts = [part for part in path.split("/") if part]
    try:
        for index, part in enumerate(parts, 1):
            below = _open_part(fd, part, last=index == len(parts))
            os.close(fd)
            fd = below
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, error.strerror, path) from None
    return fd


def stat_plain(path: str) -> os.stat_result:
    """Tells of what ``open_plain`` opens. Raises as that does."""
    fd = open_plain(path)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def open_inside(root: int, path: str, flags: int) -> int:
    """Opens a path as a process would open it that has ``root`` as its root directory: links,
    absolute ones too, and ``..`` lead nowhere else. Raises OSError, ENOSYS where the kernel or a
    filter has no openat2(2)."""
    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    size = ctypes.sizeof(how)
    return KERNEL.syscall(abi.SYS.openat2, root, os.fsencode(path), how, size)


def _open_part(fd: int, part: str, *, last: bool) -> int:
    if part == "..":
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    # O_DIRECTORY would refuse a link as "not a directory".
    below = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    mode = os.fstat(below).st_mode
    if stat.S_ISLNK(mode) or not (last or stat.S_ISDIR(mode)):
        os.close(below)
        code = errno.ELOOP if stat.S_ISLNK(mode) else errno.ENOTDIR
        raise OSError(code, os.strerror(code))
    return below


def private(path: str, flags: int) -> int:
    """Opens for ``open(opener=)`` what is its owner's alone where it is made, whatever the umask,
    and follows no link that lies in its place."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def is_folder(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def same_file(one: int, other: int) -> bool:
    """Return whether two descriptors are of one file, on whatever mounts they reach it."""
    return os.path.samestat(os.fstat(one), os.fstat(other))


def sync(path: str) -> None:
    """Make a file, or the names in a folder, safe from a loss of power. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem(path: str) -> None:
    """Make all that was written to the file system of ``path`` safe from a loss of power. Raises
    OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        KERNEL.syscall(abi.SYS.syncfs, fd)
    finally:
        os.close(fd)
