"""Paths from requests, resolved to descriptors.

Commands inside may swap what a path means between two calls. So a path is resolved once, to a
descriptor of its directory, and the entry is named relative to that.
"""

import ctypes
import errno
import os
from contextlib import suppress

from agentd.guest.operation import RequestError, get_str
from agentd.linux import abi
from agentd.linux.kernel import KERNEL

# PATH_MAX is 4096 with the NUL.
MAX_PATH = 4095
# openat2(2), Linux 5.6.
RESOLVE_NO_XDEV = 1
RESOLVE_NO_MAGICLINKS = 2


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
    """A required absolute path. Raises RequestError."""
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
    """open(2), close-on-exec, that goes through no magic link such as /proc/self/fd/3.

    The agent's own descriptors are behind those, and a planted symlink may point there. Before
    Linux 5.6, and where a filter answers ENOSYS, it is a plain open.
    """
    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, 0, resolve | RESOLVE_NO_MAGICLINKS)
    try:
        size = ctypes.sizeof(how)
        return KERNEL.syscall(abi.SYS.openat2, dir_fd, os.fsencode(path), how, size)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise OSError(error.errno, error.strerror, path) from None
    return os.open(path, flags, dir_fd=dir_fd)


def open_path(path: str, flags: int) -> int:
    """A descriptor of an absolute path."""
    return open_at(abi.AT_FDCWD, path, flags)


def split(path: str) -> tuple[str, str]:
    """A directory and the name of an entry in it. RequestError for ``/``, ``.``, ``..``."""
    head, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise RequestError(f"{path!r} names no entry of a directory: name one", errno.EINVAL)
    return head or "/", name


def open_parent(path: str, *, parents: bool = False) -> tuple[int, str]:
    """An O_PATH descriptor of the directory, and the entry's name in it.

    ``parents`` makes the missing directories, with mode 0755.
    """
    head, name = split(path)
    with naming(head):
        fd = _make_directories(head) if parents else open_path(head, os.O_PATH | os.O_DIRECTORY)
    return fd, name


def make_directory(dir_fd: int, name: str, mode: int) -> None:
    """mkdirat(2) with exactly ``mode``."""
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
