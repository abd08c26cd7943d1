"""Files of a sandbox's that are closed to their owner (``chmod 0``). Root reads them as they are;
an ordinary user, who owns them, opens them for as long as it reads. No link is followed."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator


@contextlib.contextmanager
def opened(name: str, folder: int, info: os.stat_result, flags: int) -> Iterator[int]:
    """Open the entry of ``folder`` that ``info`` is of; yield its descriptor. One that is closed to
    us, its owner, has another mode for as long; only its time of change tells of that later."""
    closed = is_closed(info)
    fd = _open_closed(name, folder, info, flags) if closed else os.open(name, flags, dir_fd=folder)
    try:
        yield fd
    finally:
        try:
            if closed:
                os.fchmod(fd, stat.S_IMODE(info.st_mode))
        finally:
            os.close(fd)


def _needed(info: os.stat_result) -> int:
    return stat.S_IRUSR | (stat.S_IXUSR if stat.S_ISDIR(info.st_mode) else 0)


def is_closed(info: os.stat_result) -> bool:
    """Return whether we own it, and its mode keeps us from reading it."""
    own = info.st_uid == os.geteuid() and not stat.S_ISLNK(info.st_mode)
    return own and info.st_mode & _needed(info) != _needed(info)


def _open_closed(name: str, folder: int, info: os.stat_result, flags: int) -> int:
    pinned = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if os.fstat(pinned).st_ino != info.st_ino:  # /proc would lead on to what a link names
            raise OSError(errno.EAGAIN, "it was replaced meanwhile", name)
        path, mode = f"/proc/self/fd/{pinned}", stat.S_IMODE(info.st_mode)
        os.chmod(path, mode | _needed(info))
        try:
            return os.open(path, flags & ~os.O_NOFOLLOW)
        except OSError:  # no descriptor is left, say
            os.chmod(path, mode)
            raise
    finally:
        os.close(pinned)
