"""Files of other owners and groups in a copy-on-write folder.

overlayfs keeps the owner of what it copies up, and the sandbox's user namespace knows one user and
group alone: a file of another group, as in a shared project, could not be changed (EOVERFLOW). So a
copy of each, owned by the sandbox's user, lies over it: a layer of the overlay, on its tmpfs.

Of an ordinary user's folder that is what others own, too: what the caller may not read stays as it
is, what the caller may not write has no write bits. Where root lends the folder of ``owner``, it is
what that one owns, in that one's folders: all else stays as it is.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from agentd.linux import mounts
from agentd.sandbox.backends.linux import copies
from agentd.sandbox.backends.linux.copies import CopySize

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A look takes some microseconds, with each sandbox: where none of so many is foreign, none may be.
_FIRST_LOOKS = 20_000
_MAX_LOOKS = 100_000
_MAX_DEPTH = 128


class Found(NamedTuple):
    """``copy`` is None where nothing is foreign, or all of it too much: then ``told`` says so."""

    copy: CopySize | None
    told: str = ""


def look(source: int, disk: int, owner: os.stat_result | None = None) -> Found:
    """Return what a layer takes, of at most ``disk`` bytes. Raises OSError."""
    survey = _Survey(disk, owner)
    with _seen(source, owner) as top:
        survey.visit(top, None, ".", 0)
    if survey.over:
        whose = "groups" if owner is not None else "owners and groups"
        return Found(None, f"files of other {whose} cannot be changed: {survey.over}")
    told = f"only {survey.looks:,} files were looked at for their owner" if survey.full else ""
    return Found(CopySize(survey.files, survey.bytes, 0, False) if survey.files else None, told)


def make(
    source: int,
    scratch: int,
    name: str,
    owner: os.stat_result | None = None,
    user: int | None = None,
) -> None:
    """Makes the layer at ``name`` of a tmpfs, ``scratch``, ``user``'s (None: ours). Raises
    OSError."""
    layer = _Layer(scratch, name, owner, user)
    try:
        with _seen(source, owner) as top:
            layer.visit(top, None, ".", 0)
    finally:
        layer.close()


@contextlib.contextmanager
def _seen(source: int, owner: os.stat_result | None) -> Iterator[int]:
    """What is in the sandbox: of a folder that is lent, not the mounts beneath it."""
    if owner is None:
        yield source
        return
    tree = mounts.clone_tree(source, readonly=True, recursive=False)
    try:
        yield tree
    finally:
        os.close(tree)


class _Walk:
    """Goes through a folder by descriptors, following no link; leaves out what cannot be read."""

    def __init__(self, owner: os.stat_result | None) -> None:
        self._owner = owner
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
        except (FileNotFoundError, NotADirectoryError):
            if depth:
                return  # the project is at work: it was there a moment ago
            raise
        try:
            info = os.fstat(fd)
            if self._owner is not None and info.st_uid != self._owner.st_uid:
                return  # a layer would hand it over
            folder = _Folder(parent, name, info, self._writable(".", fd))
            if self._is_foreign(info):
                self.any = True
                self.found_folder(folder)
            for inner in _names(fd):
                if self.full or depth > _MAX_DEPTH:
                    break
                self.looks += 1
                self._entry(fd, folder, inner, depth)
            self.leave(folder)
        finally:
            os.close(fd)

    def _entry(self, fd: int, folder: "_Folder", name: str, depth: int) -> None:
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(info.st_mode):
            self.visit(fd, folder, name, depth + 1)
        elif self._is_foreign(info) and (stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
            self.any = True
            self.found_file(fd, folder, name, info)

    def _is_foreign(self, info: os.stat_result) -> bool:
        if self._owner is not None:
            return info.st_uid == self._owner.st_uid and info.st_gid != self._owner.st_gid
        return info.st_uid != os.geteuid() or info.st_gid != os.getegid()

    def _writable(self, name: str, folder: int) -> bool:
        """Its owner's mode tells the sandbox's user; what others own tells the caller's."""
        return self._owner is not None or os.access(name, os.W_OK, dir_fd=folder)

    def found_folder(self, folder: "_Folder") -> None: ...
    def found_file(self, fd: int, folder: "_Folder", name: str, info: os.stat_result) -> None: ...
    def leave(self, folder: "_Folder") -> None: ...


def _names(folder: int) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:  # it was removed since it was opened
        return []


class _Folder:
    """A folder on the way; ``fd`` is its counterpart in the layer, once there is one."""

    def __init__(
        self, parent: "_Folder | None", name: str, info: os.stat_result, writable: bool
    ) -> None:
        self.parent, self.name, self.info, self.writable = parent, name, info, writable
        self.fd = -1
        self.counted = False


class _Survey(_Walk):
    def __init__(self, disk: int, owner: os.stat_result | None) -> None:
        super().__init__(owner)
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
    def __init__(
        self, scratch: int, name: str, owner: os.stat_result | None, user: int | None
    ) -> None:
        super().__init__(owner)
        self._scratch, self._name, self._user = scratch, name, user
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
        with copies.made_by(self._user):
            os.mkdir(name, 0o700, dir_fd=above)
        folder.fd = os.open(name, _DIR, dir_fd=above)
        self._open.append(folder)

    def found_file(self, fd: int, folder: _Folder, name: str, info: os.stat_result) -> None:
        self.found_folder(folder)
        try:
            if stat.S_ISLNK(info.st_mode):
                text = os.readlink(name, dir_fd=fd)
                with copies.made_by(self._user):
                    os.symlink(text, name, dir_fd=folder.fd)
            else:
                copies.copy_file(
                    name,
                    name,
                    fd,
                    folder.fd,
                    closed=not self._writable(name, fd),
                    as_user=lambda: copies.made_by(self._user),
                )
        except (PermissionError, FileNotFoundError):
            return  # the one below is seen, as unreadable as it is

    def leave(self, folder: _Folder) -> None:
        """After what is in it was made: only then it has its own mode and times."""
        if folder.parent is None:
            self.found_folder(folder)  # it is mounted, though all that was found went away
        if folder.fd >= 0:
            copies.finish(folder.fd, folder.info, closed=not folder.writable)
            self._open.remove(folder)
            os.close(folder.fd)
            folder.fd = -1
