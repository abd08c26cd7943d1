"""Puts the files of a snapshot on a new sandbox's disk, as ``kept`` describes them.

Before anything runs in the sandbox: nobody else changes that disk. What is read is as hostile as
the sandbox it came from: each name is one of a folder that was just made, no link is followed,
owners are the new sandbox's own, and its disk limit holds.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from agentd.guest.zygote.reserve import MAX_FILES
from agentd.linux.kernel import KERNEL
from agentd.model.errors import SandboxError
from agentd.model.system import scarce
from agentd.sandbox import sparse
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.linux import kept, lower
from agentd.sandbox.backends.linux.kept import DamagedFiles, KeptFile
from agentd.sandbox.backends.linux.reserving import Reserve

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DAMAGED = "take it again and delete this one"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def restore(folder: str, disk: int, first: int | None, room: Reserve | None = None) -> None:
    """Read what ``saving.save`` wrote into ``folder``; put it on ``disk``, an empty tmpfs.

    ``first`` is the first id of the new sandbox outside, None where that is the caller; ``room``,
    which has not begun, has what is written count as its memory. Raises SandboxError.
    """
    try:
        with contextlib.ExitStack() as opened:
            content = os.open(f"{folder}/{kept.CONTENT}", _READ)
            opened.callback(os.close, content)
            if room is not None and os.fstat(content).st_size:  # a fork that shares may have none
                room.begin()
            entries = opened.enter_context(open(f"{folder}/{kept.ENTRIES}", "rb", opener=_plain))
            restorer = opened.enter_context(
                contextlib.closing(_Restorer(content, disk, first, room))
            )
            with _acting(first):
                restorer.all(entries)
    except OSError as error:
        short = "" if error.errno == errno.ENOSPC else scarce(error)  # of the sandbox's own disk
        raise _unrestored(error.strerror or str(error), short or _DAMAGED) from error
    except DamagedFiles as error:
        raise _unrestored(str(error), _DAMAGED) from error


def _unrestored(why: str, fix: str) -> SandboxError:
    what = "the files of the snapshot could not be put back"
    return SandboxError(what, cause=why, remediation=fix)


class _Folder:
    """``entry`` is None for the top, which is not ours to change."""

    def __init__(self, fd: int, entry: KeptFile | None) -> None:
        self.fd, self.entry = fd, entry


class _Restorer:
    def __init__(self, content: int, disk: int, first: int | None, room: Reserve | None) -> None:
        self._content, self._first, self._room = content, first, room
        self._empty: list[tuple[int, KeptFile]] = []  # files that wait for their data
        self._size = os.fstat(content).st_size
        self._place = 0
        self._open = [_Folder(os.dup(disk), None)]

    def close(self) -> None:
        for fd, _ in self._empty:
            os.close(fd)
        while self._open:
            os.close(self._open.pop().fd)

    def all(self, entries: BinaryIO) -> None:
        for entry in kept.read(entries):
            if entry.depth > len(self._open):
                raise DamagedFiles(f"{os.fsdecode(entry.name)!a} lies in no folder")
            while len(self._open) > entry.depth:
                self._leave()
            self._make(entry)
        while len(self._open) > 1:
            self._leave()
        self._fill()

    def _make(self, entry: KeptFile) -> None:
        above, name = self._open[-1].fd, os.fsdecode(entry.name)
        if entry.kind == "folder":
            os.mkdir(name, 0o700, dir_fd=above)
            self._open.append(_Folder(os.open(name, _DIR, dir_fd=above), entry))
        elif entry.kind == "file":
            self._file(entry, name, above)
        elif entry.kind == "hard link":
            self._hard_link(entry.target, name, above)
        else:
            if entry.kind == "link":
                os.symlink(entry.target, entry.name, dir_fd=above)
            elif entry.kind == "pipe":
                os.mkfifo(name, 0o600, dir_fd=above)
            else:
                os.mknod(name, stat.S_IFCHR | 0o600, dir_fd=above)
            self._own(entry, name, above)

    def _leave(self) -> None:
        folder = self._open.pop()
        try:
            if folder.entry is not None:
                self._finish(folder.fd, folder.entry)
        finally:
            os.close(folder.fd)

    def _file(self, entry: KeptFile, name: str, above: int) -> None:
        fd = os.open(name, _NEW, 0o600, dir_fd=above)
        self._empty.append((fd, entry))
        os.ftruncate(fd, entry.size)
        if len(self._empty) == MAX_FILES:
            self._fill()

    def _fill(self) -> None:
        """Write the data of those that wait for it, in the order in which it was kept."""
        if self._room is not None:
            self._room.take([(fd, entry.data) for fd, entry in self._empty if entry.data])
        while self._empty:
            fd, entry = self._empty[0]
            self._write(fd, entry)
            del self._empty[0]
            os.close(fd)

    def _write(self, fd: int, entry: KeptFile) -> None:
        for start, length in entry.data:
            if self._place + length > self._size:
                raise DamagedFiles(f"{os.fsdecode(entry.name)!a} has data that is not there")
            os.lseek(fd, start, os.SEEK_SET)
            for count in sparse.send(self._content, fd, self._place, length):
                self._place += count
        self._finish(fd, entry)

    def _hard_link(self, target: bytes, name: str, above: int) -> None:
        """To a file that was made before, by a path of folders that were."""
        *folders, last = target.split(b"/")
        fd = os.dup(self._open[0].fd)
        try:
            for part in folders:
                fd, outer = self._inner(part, fd), fd
                os.close(outer)
            if not kept.is_name(last):
                raise DamagedFiles(f"{last[:255]!a} is no name")
            if not stat.S_ISREG(os.stat(last, dir_fd=fd, follow_symlinks=False).st_mode):
                raise DamagedFiles(f"{name!a} is a hard link to what is no file")
            os.link(last, os.fsencode(name), src_dir_fd=fd, dst_dir_fd=above, follow_symlinks=False)
        finally:
            os.close(fd)

    def _inner(self, name: bytes, fd: int) -> int:
        if not kept.is_name(name):
            raise DamagedFiles(f"{name[:255]!a} is no name")
        return os.open(name, _DIR, dir_fd=fd)

    def _finish(self, fd: int, entry: KeptFile) -> None:
        """A change of owner takes set-id bits away, and one of anything the times."""
        for name, value in entry.attributes.items():
            os.setxattr(fd, name, value)
        self._give(fd, entry)
        os.fchmod(fd, entry.mode)
        os.utime(fd, ns=(entry.accessed, entry.modified))

    def _own(self, entry: KeptFile, name: str, above: int) -> None:
        """Of what is not opened: nobody else is there to put a link in its place."""
        if self._first is not None:
            uid, gid = self._outside(entry)
            os.chown(name, uid, gid, dir_fd=above, follow_symlinks=False)
        if entry.kind != "link":
            os.chmod(name, entry.mode, dir_fd=above)
        times = (entry.accessed, entry.modified)
        os.utime(name, ns=times, dir_fd=above, follow_symlinks=False)

    def _give(self, fd: int, entry: KeptFile) -> None:
        if self._first is not None:
            os.fchown(fd, *self._outside(entry))

    def _outside(self, entry: KeptFile) -> tuple[int, int]:
        first = self._first or 0
        if max(entry.uid, entry.gid) >= identity.SIZE:
            raise DamagedFiles(f"{os.fsdecode(entry.name)!a} belongs to nobody of a sandbox's")
        return first + entry.uid, first + entry.gid


@contextlib.contextmanager
def _acting(first: int | None) -> Iterator[None]:
    """Make files as ``first``: a tmpfs of a user namespace takes no owner from outside it. With
    root's capabilities all the same, which setfsuid(2) takes away: folders may be closed."""
    if first is None:
        yield
        return
    with lower.acting_as(first, first):
        KERNEL.capset_effective()
        yield


def _plain(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
