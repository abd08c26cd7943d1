"""Copies of host folders that belong to a sandbox's user, on its scratch tmpfs; within bounds.

Read with our own rights, written as the sandbox's user: that one owns each file from the start.
What the folder's owner may not read is left out, as an idmapped mount would keep it closed. No link
is followed, on either side; mounts beneath the folder, sockets, pipes and devices are left out.
"""

import contextlib
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from agentd.linux import mounts
from agentd.model.errors import InvalidInput
from agentd.model.mount import Mount
from agentd.model.units import readable_size
from agentd.sandbox import sparse
from agentd.sandbox.backends.linux import lower

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_FILES = 100_000
_MAX_DEPTH = 128
_PAGE = 4096


class CopySize(NamedTuple):
    """The size of what would be copied. ``open_to_all``: everybody may read all of it."""

    files: int
    bytes: int
    left_out: int
    open_to_all: bool


def measure(mount: Mount, source: int, disk: int) -> tuple[CopySize, str]:
    """Return what a copy takes, and what of it is over a bound, ``disk`` bytes or the number of
    files: then not all was looked at. Raises OSError."""
    survey = _Survey(disk, os.fstat(source), _below(mount.source))
    survey.look(source)
    return survey.found(), survey.over


def make(mount: Mount, source: int, scratch: int, name: str, user: int | None) -> None:
    """Makes a copy at ``name`` of the tmpfs ``scratch``, owned by ``user`` (None: by us).

    Raises InvalidInput."""
    copier = _Copier(user, os.fstat(source), _below(mount.source))
    try:
        copier.copy(source, scratch, name)
    except OSError as error:
        raise failed(mount, error) from error


def failed(mount: Mount, error: OSError) -> InvalidInput:
    return InvalidInput(
        f"cannot copy {mount.source}",
        cause=f"{error.filename or ''}: {error.strerror}".removeprefix(": "),
        remediation="keep others from changing it meanwhile, and try again",
    )


class _Survey:
    def __init__(self, disk: int, top: os.stat_result, points: frozenset[str]) -> None:
        self._disk, self._top, self._points = disk, top, points
        self._files = self._bytes = self._left_out = 0
        self._open = True
        self._full = False
        #: In words.
        self.over = ""

    def found(self) -> CopySize:
        return CopySize(self._files, self._bytes, self._left_out, self._open)

    def look(self, source: int) -> None:
        self._note(self._top)
        if stat.S_ISDIR(self._top.st_mode):
            self._folder(".", source, "", 0)

    def _folder(self, name: str, above: int, path: str, depth: int) -> None:
        if depth > _MAX_DEPTH:
            self.over = f"folders nested deeper than {_MAX_DEPTH}"
            return
        fd = os.open(name, _DIR, dir_fd=above)
        try:
            for inner in os.listdir(fd):
                if self._full:
                    return
                info = lower.lstat(inner, fd)
                if info is not None and _is_copied(info):
                    self._entry(inner, info, fd, f"{path}/{inner}", depth)
        finally:
            os.close(fd)

    def _entry(self, name: str, info: os.stat_result, above: int, path: str, depth: int) -> None:
        if not _may_read(info, self._top):
            self._left_out += 1
            self._open = False
            return
        self._note(info)
        if stat.S_ISDIR(info.st_mode) and path not in self._points:
            self._folder(name, above, path, depth + 1)

    def _note(self, info: os.stat_result) -> None:
        self._files += 1
        wanted = 0o5 if stat.S_ISDIR(info.st_mode) else 0o4
        if not stat.S_ISLNK(info.st_mode) and info.st_mode & wanted != wanted:
            self._open = False
        if stat.S_ISREG(info.st_mode):
            self._bytes += pages(info)
        if self._bytes > self._disk:
            self.over = f"over {readable_size(self._disk)}, the sandbox's disk limit"
        if self._files > _MAX_FILES:
            self.over, self._full = f"over {_MAX_FILES:,} files", True


class _Copier:
    def __init__(self, user: int | None, top: os.stat_result, points: frozenset[str]) -> None:
        self._user, self._top, self._points = user, top, points

    def copy(self, source: int, scratch: int, name: str) -> None:
        if stat.S_ISDIR(self._top.st_mode):
            self._folder(".", name, source, scratch, "")
        else:  # an O_PATH descriptor, which cannot be read
            self._file(f"/proc/self/fd/{source}", name, None, scratch, follow=True)

    def _folder(self, name: str, as_: str, above: int, target: int, path: str) -> None:
        source = os.open(name, _DIR, dir_fd=above)
        try:
            with self._as_user():
                os.mkdir(as_, 0o700, dir_fd=target)
            made = os.open(as_, _DIR, dir_fd=target)
            try:
                for inner in os.listdir(source):
                    self._entry(inner, source, made, f"{path}/{inner}")
                finish(made, os.fstat(source))
            finally:
                os.close(made)
        finally:
            os.close(source)

    def _entry(self, name: str, source: int, target: int, path: str) -> None:
        info = lower.lstat(name, source)
        if info is None or not _is_copied(info) or not _may_read(info, self._top):
            return
        if stat.S_ISLNK(info.st_mode):
            text = os.readlink(name, dir_fd=source)
            with self._as_user():
                os.symlink(text, name, dir_fd=target)
        elif stat.S_ISREG(info.st_mode):
            self._file(name, name, source, target)
        elif path in self._points:
            with self._as_user():
                os.mkdir(name, 0o755, dir_fd=target)
        else:
            self._folder(name, name, source, target, path)

    def _file(
        self, name: str, as_: str, above: int | None, target: int, *, follow: bool = False
    ) -> None:
        copy_file(name, as_, above, target, follow=follow, as_user=self._as_user)

    def _as_user(self) -> contextlib.AbstractContextManager[None]:
        return made_by(self._user)


def made_by(user: int | None) -> contextlib.AbstractContextManager[None]:
    """Make the files of this thread ``user``'s (None: ours): a tmpfs of a user namespace takes
    files of no owner outside it."""
    return contextlib.nullcontext() if user is None else lower.acting_as(user, user)


def copy_file(
    name: str,
    as_: str,
    above: int | None,
    target: int,
    *,
    follow: bool = False,
    closed: bool = False,
    as_user: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> None:
    """Copies a regular file's data, mode and times, from a folder to another, each a descriptor;
    made within ``as_user``, without write bits where it is ``closed``. Raises OSError."""
    source = os.open(name, _READ & ~os.O_NOFOLLOW if follow else _READ, dir_fd=above)
    try:
        info = os.fstat(source)
        if not stat.S_ISREG(info.st_mode):
            return  # it was replaced meanwhile
        with as_user():
            made = os.open(as_, _NEW, 0o600, dir_fd=target)
        try:
            for _ in sparse.copy(source, made, info.st_size):
                pass
            finish(made, info, closed=closed)
        finally:
            os.close(made)
    finally:
        os.close(source)


def finish(fd: int, info: os.stat_result, *, closed: bool = False) -> None:
    """Give a copy mode and times."""
    os.fchmod(fd, stat.S_IMODE(info.st_mode) & (0o555 if closed else 0o777))
    os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))


def pages(info: os.stat_result) -> int:
    """Counts the bytes that a file's data takes on a tmpfs."""
    return -(-min(info.st_size, info.st_blocks * 512) // _PAGE) * _PAGE


def _may_read(info: os.stat_result, top: os.stat_result) -> bool:
    """Return whether the folder's owner may, by owner, group and mode."""
    if info.st_uid == top.st_uid or stat.S_ISLNK(info.st_mode):
        return True
    wanted = 0o5 if stat.S_ISDIR(info.st_mode) else 0o4
    bits = info.st_mode >> 3 if info.st_gid == top.st_gid else info.st_mode
    return bits & wanted == wanted


def _is_copied(info: os.stat_result) -> bool:
    mode = info.st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)


def _below(source: str) -> frozenset[str]:
    """The mounts beneath a folder, by their path in it."""
    top = source.rstrip("/") + "/"
    return frozenset(f"/{path[len(top) :]}" for path in mounts.points() if path.startswith(top))
