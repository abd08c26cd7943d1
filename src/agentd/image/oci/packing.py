"""Makes an archive of a directory; as a process of its own, ``main``, of an unpacked root.

That one reads what its owner made unreadable as well, and gives files back to whom they belonged.
Standard library and ``agentd.linux`` only: it is started without site-packages.
"""

import contextlib
import os
import stat
import sys
import tarfile
from collections.abc import Callable
from typing import NoReturn

from agentd.image.oci.owners import ATTRIBUTE, owner_of
from agentd.linux import abi, process
from agentd.linux.kernel import KERNEL

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: How often what is archived lies on the disk before it is done: here, in the maker's temporary
#: file, and in what that makes.
COPIES = 3
#: What the process ends with where there is no room.
NO_ROOM = 28


class Walk:
    """Adds a directory to an archive, in the order of names, so that the same gives the same."""

    def __init__(
        self,
        archive: tarfile.TarFile,
        *,
        owners: bool = False,
        entered: Callable[[str], None] = lambda inside: None,
        reading: Callable[[int], None] = lambda size: None,
    ) -> None:
        """``owners``: files belong to whom they did in the image. ``entered`` is told the path of
        each entry, ``reading`` the size of each file before it is read; both may raise."""
        self._archive = archive
        self._owners = owners
        self._entered = entered
        self._reading = reading
        self._linked: dict[tuple[int, int], str] = {}

    def add(self, source: str) -> None:
        device = os.stat(source).st_dev
        for path, folders, files, fd in os.fwalk(source, onerror=_raise):
            inside = os.path.relpath(path, source)
            if os.fstat(fd).st_dev != device:
                folders.clear()
                continue
            folders.sort()
            self._entry(inside, os.fstat(fd), fd, "")
            for name in sorted([*files, *(n for n in folders if _is_link(n, fd))]):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if not stat.S_ISSOCK(status.st_mode):
                    self._entry(os.path.normpath(f"{inside}/{name}"), status, fd, name)

    def _entry(self, inside: str, status: os.stat_result, dir_fd: int, name: str) -> None:
        self._entered(inside)
        info = tarfile.TarInfo(inside)
        info.mode = stat.S_IMODE(status.st_mode)
        info.uid, info.gid = status.st_uid, status.st_gid
        if self._owners:
            info.uid, info.gid = _owner(status, dir_fd, name)
        info.mtime = max(0, int(status.st_mtime))
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            info.type = tarfile.DIRTYPE
        elif kind == stat.S_IFLNK:
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=dir_fd)
        elif kind == stat.S_IFIFO:
            info.type = tarfile.FIFOTYPE
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            info.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        else:
            self._file(info, status, dir_fd, name)
            return
        self._archive.addfile(info)

    def _file(self, info: tarfile.TarInfo, status: os.stat_result, dir_fd: int, name: str) -> None:
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in self._linked:
            info.type, info.linkname = tarfile.LNKTYPE, self._linked[key]
            self._archive.addfile(info)
            return
        self._linked[key] = info.name
        with os.fdopen(os.open(name, _OPEN, dir_fd=dir_fd), "rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            self._reading(info.size)
            self._archive.addfile(info, file)


def _is_link(name: str, dir_fd: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)


def _raise(error: OSError) -> None:
    raise error


def _owner(status: os.stat_result, dir_fd: int, name: str) -> tuple[int, int]:
    """Whose a file of an unpacked root was in the image, root's where that is not noted. A link's
    owner is not known there."""
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return 0, 0
    path = f"/proc/self/fd/{dir_fd}/{name}" if name else f"/proc/self/fd/{dir_fd}"
    try:
        return owner_of(os.getxattr(path, ATTRIBUTE)) or (0, 0)
    except OSError:
        return 0, 0


def _check_room(root: str, path: str) -> None:
    """Raises OSError where what is to be made would fill the disk: files may have holes."""
    size = 0
    for _, folders, names, fd in os.fwalk(root, onerror=_raise):
        for name in names:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            size += status.st_size // status.st_nlink if stat.S_ISREG(status.st_mode) else 0
        size += 1024 * (len(folders) + len(names))
    room = os.statvfs(os.path.dirname(path))
    if size * COPIES > room.f_bavail * room.f_frsize:
        raise OSError(NO_ROOM, os.strerror(NO_ROOM))


def main(root: str, path: str) -> NoReturn:
    """Write the archive of an unpacked root at ``path``, and end: 0, ``NO_ROOM``, or 1 with the
    reason on stderr."""
    try:
        if os.geteuid() != 0:
            _read_all()
        _check_room(root, path)
        with tarfile.open(path, "x", format=tarfile.GNU_FORMAT) as archive:
            Walk(archive, owners=True).add(root)
    except OSError as error:
        print(f"{error.filename or root}: {error.strerror}", file=sys.stderr)
        sys.exit(NO_ROOM if error.errno == NO_ROOM else 1)
    sys.exit(0)


def _read_all() -> None:
    """Be root over what is ours, as an ordinary user may in a user namespace."""
    uid, gid = os.geteuid(), os.getegid()
    with contextlib.suppress(OSError):  # then what is closed to its owner is told
        KERNEL.unshare(abi.CLONE_NEWUSER)
        process.map_ids((0, uid), (0, gid))
