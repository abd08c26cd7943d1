"""Paths from requests, resolved to descriptors.

Commands inside may swap what a path means between two calls. So a path is resolved once, to a
descriptor of its directory, and the entry is named relative to that.
"""

import ctypes
import errno
import os
import stat
from contextlib import suppress

from agentd.guest.operation import RequestError, get_str
from agentd.linux import abi
from agentd.linux.kernel import KERNEL

# PATH_MAX is 4096 with the NUL.
MAX_PATH = 4095
# openat2(2), Linux 5.6.
RESOLVE_NO_XDEV = 1
RESOLVE_NO_MAGICLINKS = 2
_PATH = os.O_PATH | os.O_CLOEXEC
_MAX_LINKS = 40  # as the kernel's
_AT_EMPTY_PATH, _STATX_MNT_ID, _MNT_ID = 0x1000, 0x1000, 144  # the last: where it is in statx
_PROC_ROOT = 1  # the inode of /proc itself


class naming:
    """An OSError raised inside names ``path``, not the entry a dir_fd call was given."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, self._path) from None


def get_path(request: dict[str, object], key: str = "path") -> str:
    """Returns a required absolute path. Raises RequestError."""
    path = get_str(request, key)
    try:
        length = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise RequestError(f"{key!r} holds a character no file name has: send UTF-8") from None
    if not path.startswith("/"):
        raise RequestError(f"{key!r} must be an absolute path, not {path[:100]!r}")
    if length > MAX_PATH:
        raise RequestError(f"{key!r} is over {MAX_PATH} bytes: shorten it", errno.ENAMETOOLONG)
    return path


def open_at(dir_fd: int, path: str, flags: int, resolve: int = 0) -> int:
    """Does an open(2), close-on-exec, that goes through no magic link such as /proc/self/fd/3.

    The agent's own descriptors are behind those, and a planted symlink may point there. Makes no
    file. Before Linux 5.6, and where a filter answers ENOSYS, we go from part to part.
    """
    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, 0, resolve | RESOLVE_NO_MAGICLINKS)
    try:
        size = ctypes.sizeof(how)
        return KERNEL.syscall(abi.SYS.openat2, dir_fd, os.fsencode(path), how, size)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise OSError(error.errno, error.strerror, path) from None
    with naming(path):
        return _walk(dir_fd, path, flags, resolve)


def _walk(dir_fd: int, path: str, flags: int, resolve: int) -> int:
    """What openat2(2) does, by openat(2): of a link only what it says is used."""
    at = os.open("/" if path.startswith("/") else ".", _PATH | os.O_DIRECTORY, dir_fd=dir_fd)
    mount = _mount_of(at) if resolve & RESOLVE_NO_XDEV else 0
    parts, links = _parts(path), 0
    found = -1
    try:
        while parts:
            part = parts.pop()
            found = os.open(part, _PATH | os.O_NOFOLLOW, dir_fd=at)
            if mount and _mount_of(found) != mount:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            status = os.fstat(found)
            if stat.S_ISLNK(status.st_mode) and (parts or not flags & os.O_NOFOLLOW):
                links += 1
                if links > _MAX_LINKS or _is_magic(at, status):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink("", dir_fd=found)
                parts += _parts(target)
                if target.startswith("/"):
                    root = os.open("/", _PATH | os.O_DIRECTORY)
                    os.close(at)
                    at = root
            elif parts:
                at, found = found, at
            else:  # one that was swapped for a link meanwhile is refused
                return os.open(part, flags | os.O_NOFOLLOW, dir_fd=at)
            os.close(found)
            found = -1
        return os.open(".", flags, dir_fd=at)
    finally:
        os.close(at)
        if found >= 0:
            os.close(found)


def _mount_of(fd: int) -> int:
    """The number of the mount that it lies in (statx(2), Linux 5.8)."""
    about = ctypes.create_string_buffer(256)
    KERNEL.syscall(abi.SYS.statx, fd, b"", _AT_EMPTY_PATH, _STATX_MNT_ID, about)
    return int.from_bytes(about.raw[_MNT_ID : _MNT_ID + 8], "little")


def _parts(path: str) -> list[str]:
    """The last first; of one that must be a directory, as ``a/``, that is "." ."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    is_directory = path.endswith(("/", "/."))
    return ["."] * is_directory + parts[::-1]


def _is_magic(parent: int, link: os.stat_result) -> bool:
    """Return whether it is a link of a process's own in /proc, which leads to what is open. Those
    of /proc itself (self, mounts) say a path."""
    try:
        proc = os.stat("/proc").st_dev
    except FileNotFoundError:
        return False
    return link.st_dev == proc and os.fstat(parent).st_ino != _PROC_ROOT


def open_path(path: str, flags: int) -> int:
    """Opens a descriptor of an absolute path."""
    return open_at(abi.AT_FDCWD, path, flags)


def split(path: str) -> tuple[str, str]:
    """Returns a directory and the name of an entry in it. RequestError for ``/``, ``.``, ``..``."""
    head, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise RequestError(f"{path!r} names no entry of a directory: name one", errno.EINVAL)
    return head or "/", name


def open_parent(path: str, *, parents: bool = False) -> tuple[int, str]:
    """Opens an O_PATH descriptor of the directory, and the entry's name in it.

    ``parents`` makes the missing directories, with mode 0755.
    """
    head, name = split(path)
    with naming(head):
        fd = _make_directories(head) if parents else open_path(head, os.O_PATH | os.O_DIRECTORY)
    return fd, name


def make_directory(dir_fd: int, name: str, mode: int) -> None:
    """Does a mkdirat(2) with exactly ``mode``."""
    # The umask belongs to the one thread there is, and no process is made in between.
    before = os.umask(0)
    try:
        os.mkdir(name, mode, dir_fd=dir_fd)
    finally:
        os.umask(before)


def _make_directories(path: str) -> int:
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        for part in path.split("/"):
            if part:
                below = _enter_or_make(fd, part)
                os.close(fd)
                fd = below
    except BaseException:
        os.close(fd)
        raise
    return fd


def _enter_or_make(dir_fd: int, name: str) -> int:
    # What exists and is no directory, the open tells.
    with suppress(FileExistsError):
        make_directory(dir_fd, name, 0o755)
    return open_at(dir_fd, name, os.O_PATH | os.O_DIRECTORY)
