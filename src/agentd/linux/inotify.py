"""inotify(7), which Python lacks: watches on files and directories, events as values."""

import ctypes
import os
import struct
from typing import NamedTuple

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x01000000
IN_DONT_FOLLOW = 0x02000000
IN_EXCL_UNLINK = 0x04000000
IN_ISDIR = 0x40000000

# The kernel gives whole events only; the longest is 16 bytes and a name of 255 with its NUL.
READ_SIZE = 8 << 10
_HEADER = struct.Struct("iIII")

# By name and not by number: aarch64 has no inotify_init, and libc knows.
_libc = ctypes.CDLL(None, use_errno=True)


class InotifyEvent(NamedTuple):
    wd: int  # -1 of an overflow
    mask: int
    name: str  # of the entry, in the directory watched; "" of the watched one itself


class Inotify:
    """An inotify instance: a non-blocking, close-on-exec descriptor. Errors are OSError."""

    def __init__(self) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        return self._fd

    def add(self, path: str, mask: int) -> int:
        """Adds a watch; one on the same inode as an earlier one has that one's number."""
        return _checked(_libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask)))

    def remove(self, wd: int) -> None:
        _checked(_libc.inotify_rm_watch(self._fd, wd))

    def read(self) -> list[InotifyEvent]:
        """Return what has happened, at most READ_SIZE bytes of it; [] when nothing has."""
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return []
        return parse(data)

    def close(self) -> None:
        os.close(self._fd)


def parse(data: bytes) -> list[InotifyEvent]:
    """Parses ``struct inotify_event``: wd, mask, cookie, length, and a name padded with NULs."""
    events = []
    start = 0
    while start < len(data):
        wd, mask, _, length = _HEADER.unpack_from(data, start)
        start += _HEADER.size
        events.append(
            InotifyEvent(wd, mask, os.fsdecode(data[start : start + length].rstrip(b"\0")))
        )
        start += length
    return events


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
