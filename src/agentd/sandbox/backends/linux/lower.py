"""The host's side of an overlay: what is written there is written as its owner, on its own mount.

Where agentd is root, the kernel judges each change of a name as the folder's owner's, since others
may swap what a name means meanwhile: what that one may not do, is not done. No link is followed,
and no mount entered: what is mounted beneath the folder no sandbox has seen.
"""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator

from agentd.linux import mounts

_libc = ctypes.CDLL(None)
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_DEPTH = 256
_WRITES = stat.S_IWUSR | stat.S_IXUSR


class Lower:
    """``ids`` are the owner's user and group, None where we are the caller."""

    def __init__(self, ids: tuple[int, int] | None) -> None:
        self._ids = ids

    def acting(self) -> contextlib.AbstractContextManager[None]:
        """Act as the owner in what this thread does with names of files."""
        return acting_as(*self._ids) if self._ids is not None else contextlib.nullcontext()

    def may_write(self, folder: int) -> bool:
        """Return whether the owner may: a folder of its own always, for it may change the mode."""
        uid, gid = self._ids or (0, 0)
        if uid == 0:
            return os.access(".", os.W_OK | os.X_OK, dir_fd=folder)
        found = os.fstat(folder)
        if found.st_uid == uid:
            return True
        bits = found.st_mode >> 3 if found.st_gid == gid else found.st_mode
        return bits & 0o3 == 0o3

    @contextlib.contextmanager
    def opened(self, folder: int) -> Iterator[None]:
        """Within it the owner's folder can be written, whatever its mode."""
        found = os.fstat(folder)
        mode = stat.S_IMODE(found.st_mode)
        closed = self._ids is not None and self._is_owners(found) and mode & _WRITES != _WRITES
        if closed:
            os.fchmod(folder, mode | _WRITES)
        try:
            yield
        finally:
            if closed:
                os.fchmod(folder, mode)

    def set_mode(self, folder: int, permissions: int) -> None:
        """A setgid folder stays one, which its owner could not see to. Raises OSError."""
        found = os.fstat(folder)
        if self._ids is not None and not self._is_owners(found):
            raise PermissionError(errno.EPERM, "the mode of another's folder cannot be changed")
        os.fchmod(folder, permissions | found.st_mode & stat.S_ISGID)

    def keep_group(self, made: int, before: os.stat_result | None) -> None:
        """Gives ``before``'s group to what takes its place, as far as the writer may."""
        if before is None or before.st_gid == os.fstat(made).st_gid:
            return
        if self._ids is None:
            with contextlib.suppress(PermissionError):
                os.fchown(made, -1, before.st_gid)
        elif self._is_owners(before):
            os.fchown(made, -1, before.st_gid)

    def remove(self, name: str, folder: int, depth: int = 0) -> None:
        """Removes it and all in it; quiet for what is not there. Raises OSError."""
        info = lstat(name, folder)
        if info is None:
            return
        if not stat.S_ISDIR(info.st_mode):
            with self.acting():
                os.unlink(name, dir_fd=folder)
            return
        if depth > _MAX_DEPTH:
            raise OSError(errno.ENAMETOOLONG, f"nested deeper than {_MAX_DEPTH} folders", name)
        below = enter(name, folder)
        try:
            with self.opened(below):
                for inner in os.listdir(below):
                    self.remove(inner, below, depth + 1)
        finally:
            os.close(below)
        with self.acting():
            os.rmdir(name, dir_fd=folder)

    def _is_owners(self, info: os.stat_result) -> bool:
        return self._ids is not None and info.st_uid == self._ids[0]


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Files are this user's for the thread, and what it may do with them, too (setfsuid(2)).

    Root gives up the capabilities that are about files for as long."""
    old_gid, old_uid = _libc.setfsgid(gid), _libc.setfsuid(uid)
    try:
        yield
    finally:
        _libc.setfsuid(old_uid)
        _libc.setfsgid(old_gid)


def enter(name: str, folder: int) -> int:
    """Opens a folder in another, on the same mount. Raises OSError, EXDEV for a mount."""
    fd = os.open(name, _DIR, dir_fd=folder)
    if mounts.id_of(fd) == mounts.id_of(folder):
        return fd
    os.close(fd)
    raise OSError(errno.EXDEV, "something else is mounted there", name)


def mounted_beneath(folder: int) -> frozenset[str]:
    """Return where something is mounted in it, by the path from there. Raises OSError."""
    top = os.readlink(f"/proc/self/fd/{folder}").rstrip("/") + "/"
    return frozenset(path[len(top) :] for path in mounts.points() if path.startswith(top))


def shown(path: str | bytes) -> str:
    """Returns a path on one line, whatever it holds; of a long one the end."""
    text = ascii(os.fsdecode(path))[1:-1]
    return text if len(text) <= 200 else f"...{text[-200:]}"


def lstat(name: str, folder: int | None) -> os.stat_result | None:
    """Returns what has that name; None where nothing has."""
    if folder is None:
        return None
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
