"""Writes down all files of a sandbox's disk, as ``kept`` describes.

They are read through a descriptor of its tmpfs, never through the sandbox, and are hostile data:
nothing is followed, no other mount is entered, devices and sockets are left out (a socket without
its process is nothing), and no more is written than the sandbox can hold.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from agentd.guest.zygote import stack
from agentd.linux import paths
from agentd.model.errors import Conflict, SandboxError
from agentd.model.units import readable_size
from agentd.sandbox import sparse
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.linux import kept
from agentd.sandbox.backends.linux.closed import is_closed, opened
from agentd.sandbox.backends.linux.kept import KeptFile
from agentd.sandbox.backends.linux.lower import lstat, shown

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
# Of files that others write meanwhile.
_ATTEMPTS = 3
_OF_AN_OVERLAY = frozenset(f"user.overlay.{name}" for name in ("origin", "impure", "uuid"))
_MOST_TIME = (1 << 63) - 1
_MAX_TARGET = 4000  # of a hard link: the kernel takes a path of 4096 bytes


class SavedDisk(NamedTuple):
    """What is saved: ``fd`` is a tmpfs, or two that are ``merged`` in an overlay; ``used``
    bytes are on it, and ``size`` at most."""

    fd: int
    used: int
    size: int
    merged: bool = False


def save(
    folder: str, disk: SavedDisk, first: int | None, *, still: bool, check: Callable[[], None]
) -> None:
    """Write what is on ``disk`` into ``folder``.

    ``first`` is the first id of the sandbox outside, None where that is the caller. Where the
    sandbox is not ``still`` all of it is looked at once more, and written anew should anything have
    changed. ``check`` is called again and again, and may raise. Raises SandboxError.
    """
    _check_room(folder, disk.used)
    for _ in range(1 if still else _ATTEMPTS):
        written = _Saver(folder, disk, first, check).save()
        if still or written == _Look(disk, check).look():
            return
        for name in (kept.ENTRIES, kept.CONTENT):
            os.unlink(f"{folder}/{name}")
    raise Conflict(
        "its programs change its files faster than they can be copied",
        remediation="end what runs in its background; or give the sandbox limits that a cgroup "
        "holds (agentd doctor): then it is stopped for as long",
    )


def _check_room(folder: str, used: int) -> None:
    space = os.statvfs(folder)
    left = space.f_bavail * space.f_frsize
    if used > left:
        raise SandboxError(
            f"the snapshot takes up to {readable_size(used)}, and {readable_size(left)} are left",
            cause=folder,
            remediation="make room, or remove files in the sandbox",
        )


class _Stamps:
    """A digest over what changes with a file."""

    def __init__(self) -> None:
        self._found = hashlib.sha256()

    def add(self, depth: int, name: str, info: os.stat_result) -> None:
        changed = 0 if is_closed(info) else info.st_ctime_ns  # which our own look changes
        told = (depth, name, info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, changed)
        self._found.update(repr(told).encode())

    def digest(self) -> bytes:
        return self._found.digest()


class _Walk:
    """Which files there are."""

    def __init__(self, disk: SavedDisk, check: Callable[[], None]) -> None:
        self._disk, self._check = disk, check
        self._device = os.fstat(disk.fd).st_dev

    def _found(self, fd: int, depth: int) -> Iterator[tuple[str, os.stat_result]]:
        """What is in a folder, without mounts, which are made anew."""
        for name in sorted(os.listdir(fd)):
            self._check()
            info = lstat(name, fd)
            if info is None:
                continue
            # An overlay has files of several devices, and nothing is mounted in it; the place of
            # the layer to come, where that of a layer below was.
            if not self._disk.merged and info.st_dev != self._device:
                continue
            if depth == 1 and name == stack.NEXT:
                continue
            yield name, info


class _Look(_Walk):
    """Goes through all as ``_Saver`` does, and reads nothing."""

    def __init__(self, disk: SavedDisk, check: Callable[[], None]) -> None:
        super().__init__(disk, check)
        self._stamps = _Stamps()

    def look(self) -> bytes:
        self._folder(self._disk.fd, 1)
        return self._stamps.digest()

    def _folder(self, fd: int, depth: int) -> None:
        for name, info in self._found(fd, depth):
            self._stamps.add(depth, name, info)
            if stat.S_ISDIR(info.st_mode) and depth < kept.MAX_DEPTH:
                with opened(name, fd, info, _DIR) as inner:
                    self._folder(inner, depth + 1)


class _Saver(_Walk):
    def __init__(
        self, folder: str, disk: SavedDisk, first: int | None, check: Callable[[], None]
    ) -> None:
        super().__init__(disk, check)
        self._where, self._first = folder, first
        self._left = disk.size
        self._stamps = _Stamps()
        self._count = 0
        self._linked: dict[
            tuple[int, int], bytes
        ] = {}  # the path of each file that has another name

    def save(self) -> bytes:
        with contextlib.ExitStack() as files:
            self._entries: BinaryIO = files.enter_context(
                open(f"{self._where}/{kept.ENTRIES}", "xb", opener=paths.private)
            )
            self._content = os.open(f"{self._where}/{kept.CONTENT}", _NEW, 0o600)
            files.callback(os.close, self._content)
            kept.write(self._entries, kept.KeptHead(kept.FORMAT))
            self._folder(self._disk.fd, b"", 1)
        return self._stamps.digest()

    def _folder(self, fd: int, path: bytes, depth: int) -> None:
        if depth > kept.MAX_DEPTH:
            raise _unkept(path, f"is nested deeper than {kept.MAX_DEPTH} folders")
        for name, info in self._found(fd, depth):
            self._entry(name, info, fd, path + b"/" + os.fsencode(name), depth)

    def _entry(self, name: str, info: os.stat_result, fd: int, path: bytes, depth: int) -> None:
        self._inside(info.st_uid, os.geteuid(), path)  # before it is opened, which may not be ours
        if stat.S_ISDIR(info.st_mode):
            with opened(name, fd, info, _DIR) as inner:
                self._write("folder", name, info, path, depth, attributes=_attributes(inner, path))
                self._folder(inner, path, depth + 1)
        elif stat.S_ISREG(info.st_mode):
            with opened(name, fd, info, _FILE) as inner:
                self._file(name, inner, info, path, depth)
        elif stat.S_ISLNK(info.st_mode):
            target = os.fsencode(os.readlink(name, dir_fd=fd))
            self._write("link", name, info, path, depth, target=target)
        elif stat.S_ISFIFO(info.st_mode):
            self._write("pipe", name, info, path, depth)
        elif stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:  # of an overlay: it is gone
            self._write("whiteout", name, info, path, depth)
        else:
            self._stamps.add(depth, name, info)

    def _file(self, name: str, fd: int, info: os.stat_result, path: bytes, depth: int) -> None:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return  # it was replaced just now: the second look finds that
        before = self._linked.get((info.st_dev, info.st_ino))
        if before is not None:
            self._write("hard link", name, info, path, depth, target=before)
            return
        if info.st_nlink > 1 and len(path) <= _MAX_TARGET:
            self._linked[info.st_dev, info.st_ino] = path[1:]
        data = tuple(self._copy(fd, info.st_size, path))
        attributes = _attributes(fd, path)
        size = info.st_size
        self._write("file", name, info, path, depth, size=size, data=data, attributes=attributes)

    def _copy(self, fd: int, size: int, path: bytes) -> Iterator[tuple[int, int]]:
        """The stretches that are no holes, whose data now lies at the end of the content."""
        for start, end in sparse.stretches(fd, size):
            place = start
            for count in sparse.send(fd, self._content, start, end - start):
                self._check()
                place += count
                self._left -= count
                if self._left < 0:
                    raise _unkept(path, "and those before it are larger than the sandbox's disk")
            if place > start:
                yield start, place - start

    def _write(
        self, kind: str, name: str, info: os.stat_result, path: bytes, depth: int, **fields: object
    ) -> None:
        self._stamps.add(depth, name, info)
        self._count += 1
        if self._count > kept.MAX_ENTRIES:
            raise _unkept(path, f"is one of over {kept.MAX_ENTRIES:,} files")
        about = {
            "depth": depth,
            "name": os.fsencode(name),
            "kind": kind,
            "mode": stat.S_IMODE(info.st_mode),
            "uid": self._inside(info.st_uid, os.geteuid(), path),
            "gid": self._inside(info.st_gid, os.getegid(), path),
            "accessed": _kept_time(info.st_atime_ns),
            "modified": _kept_time(info.st_mtime_ns),
        }
        try:
            kept.write(self._entries, KeptFile(**about, **fields))  # type: ignore[arg-type]
        except kept.TooLong:
            raise _unkept(path, "has more stretches of data between holes than are kept") from None

    def _inside(self, owner: int, own: int, path: bytes) -> int:
        first, size = (own, 1) if self._first is None else (self._first, identity.SIZE)
        if self._first is None and owner != own:
            raise SandboxError(
                f"{shown(path)} belongs to another than root, and an ordinary user can keep only "
                "files of its own",
                remediation="chown it to root in the sandbox, or run agentd as root",
            )
        if not 0 <= owner - first < size:
            raise _unkept(path, f"belongs to {owner}, who is not one of the sandbox's")
        return owner - first


def _kept_time(nanoseconds: int) -> int:
    """Return the nearest that has 64 bits: a program may say of a file that it is of any year, and
    until 2262 that is what is kept."""
    return max(-_MOST_TIME, min(nanoseconds, _MOST_TIME))


def _is_kept(name: str) -> bool:
    """Of an overlay's own, those that say what is there; not where it was copied from."""
    return name.startswith("user.") and name not in _OF_AN_OVERLAY


def _attributes(fd: int, path: bytes) -> dict[str, bytes]:
    try:
        names = [name for name in os.listxattr(fd) if _is_kept(name)]
    except OSError:
        return {}
    found: dict[str, bytes] = {}
    size = 0
    for name in names:
        with contextlib.suppress(OSError):  # it was removed just now
            found[name] = os.getxattr(fd, name)
            size += len(name) + len(found[name])
        if size > kept.MAX_ATTRIBUTES:
            raise _unkept(path, f"has over {kept.MAX_ATTRIBUTES} bytes of extended attributes")
    return found


def _unkept(path: bytes, why: str) -> SandboxError:
    return SandboxError(
        f"{shown(path)} {why}", remediation="change that in the sandbox, and try again"
    )
