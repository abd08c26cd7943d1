"""Files of other owners and groups in an ordinary user's copy-on-write folder.

overlayfs keeps the owner of what it copies up, and the sandbox's user namespace knows the caller's
ids alone: a file of another group, as in a shared project, could not be changed (EOVERFLOW). So a
copy of each, owned by the caller, lies over it: a layer of the overlay, on the sandbox's tmpfs.
What the caller may not read stays as it is; what the caller may not write has no write bits.
"""

import os
import stat
from typing import NamedTuple

from agentd.sandbox.backends.linux import copies
from agentd.sandbox.backends.linux.copies import Size

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A look takes some microseconds, with each sandbox: where none of so many is foreign, none may be.
_FIRST_LOOKS = 20_000
_MAX_LOOKS = 100_000
_MAX_DEPTH = 128


class Found(NamedTuple):
    """``copy`` is None where nothing is foreign, or all of it too much: then ``told`` says so."""

    copy: Size | None
    told: str = ""


def look(source: int, disk: int) -> Found:
    """What a layer takes, of at most ``disk`` bytes. Raises OSError."""
    survey = _Survey(disk)
    survey.visit(source, None, ".", 0)
    if survey.over:
        return Found(None, f"files of other owners and groups cannot be changed: {survey.over}")
    told = f"only {survey.looks:,} files were looked at for their owner" if survey.full else ""
    return Found(Size(survey.files, survey.bytes, 0, False) if survey.files else None, told)


def make(source: int, scratch: int, name: str) -> None:
    """The layer, at ``name`` of the tmpfs ``scratch``. Raises OSError."""
    layer = _Layer(scratch, name)
    try:
        layer.visit(source, None, ".", 0)
    finally:
        layer.close()


class _Walk:
    """Goes through a folder by descriptors, following no link; leaves out what cannot be read."""

    def __init__(self) -> None:
        self.looks = 0
        self.any = False

    @property
    def full(self) -> bool:
        return self.looks >= (_MAX_LOOKS if self.any else _FIRST_LOOKS)

    def visit(self, above: int, parent: "_Folder | None", name: str, depth: int) -> None:
        try:
            fd = os.open(name, _DIR, dir_fd=above)
        except PermissionError:
            return
        try:
            info = os.fstat(fd)
            folder = _Folder(parent, name, info, _writable(".", fd))
            if _is_foreign(info):
                self.any = True
                self.found_folder(folder)
            for inner in os.listdir(fd):
                if self.full or depth > _MAX_DEPTH:
                    return
                self.looks += 1
                self._entry(fd, folder, inner, depth)
        finally:
            os.close(fd)
            self.leave(folder)

    def _entry(self, fd: int, folder: "_Folder", name: str, depth: int) -> None:
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(info.st_mode):
            self.visit(fd, folder, name, depth + 1)
        elif _is_foreign(info) and (stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
            self.any = True
            self.found_file(fd, folder, name, info)

    def found_folder(self, folder: "_Folder") -> None: ...
    def found_file(self, fd: int, folder: "_Folder", name: str, info: os.stat_result) -> None: ...
    def leave(self, folder: "_Folder") -> None: ...


class _Folder:
    """One on the way; ``fd`` is its counterpart in the layer, once there is one."""

    def __init__(
        self, parent: "_Folder | None", name: str, info: os.stat_result, writable: bool
    ) -> None:
        self.parent, self.name, self.info, self.writable = parent, name, info, writable
        self.fd = -1
        self.counted = False


class _Survey(_Walk):
    def __init__(self, disk: int) -> None:
        super().__init__()
        self._disk = disk
        self.files = self.bytes = 0
        self.over = ""

    def found_folder(self, folder: _Folder) -> None:
        at: _Folder | None = folder
        while at is not None and not at.counted:
            at.counted = True
            self.files += 1
            at = at.parent

    def found_file(self, fd: int, folder: _Folder, name: str, info: os.stat_result) -> None:
        self.found_folder(folder)
        self.files += 1
        self.bytes += copies.pages(info)
        if self.bytes > self._disk:
            self.over = "they are more than the sandbox's disk limit (--disk)"


class _Layer(_Walk):
    def __init__(self, scratch: int, name: str) -> None:
        super().__init__()
        self._scratch, self._name = scratch, name
        self._open: list[_Folder] = []

    def close(self) -> None:
        for folder in self._open:
            os.close(folder.fd)
        self._open.clear()

    def found_folder(self, folder: _Folder) -> None:
        """Make it, and what it lies in."""
        if folder.fd >= 0:
            return
        if folder.parent is None:
            above, name = self._scratch, self._name
        else:
            self.found_folder(folder.parent)
            above, name = folder.parent.fd, folder.name
        os.mkdir(name, 0o700, dir_fd=above)
        folder.fd = os.open(name, _DIR, dir_fd=above)
        self._open.append(folder)

    def found_file(self, fd: int, folder: _Folder, name: str, info: os.stat_result) -> None:
        self.found_folder(folder)
        try:
            if stat.S_ISLNK(info.st_mode):
                os.symlink(os.readlink(name, dir_fd=fd), name, dir_fd=folder.fd)
            else:
                copies.copy_file(name, name, fd, folder.fd, closed=not _writable(name, fd))
        except (PermissionError, FileNotFoundError):
            return  # the one below is seen, as unreadable as it is

    def leave(self, folder: _Folder) -> None:
        """After what is in it was made: only then it has its own mode and times."""
        if folder.fd >= 0:
            copies.finish(folder.fd, folder.info, closed=not folder.writable)
            self._open.remove(folder)
            os.close(folder.fd)
            folder.fd = -1


def _is_foreign(info: os.stat_result) -> bool:
    return info.st_uid != os.geteuid() or info.st_gid != os.getegid()


def _writable(name: str, folder: int) -> bool:
    return os.access(name, os.W_OK, dir_fd=folder)
