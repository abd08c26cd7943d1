"""Removes a tree: never through a symlink, never past a mount, in slices, at any depth.

Three descriptors are open, and so many names remembered, however deep the tree is: what is deeper
is moved to its top, and removed from there. The way back up is ``..``, and it is checked to be the
directory that was left: a command may move a directory while it is being emptied, and ``..`` then
leads elsewhere.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from agentd.guest.operation import RequestError
from agentd.guest.resolve import RESOLVE_NO_XDEV, naming, open_at
from agentd.guest.stepped import Steps

# Calls made before the loop has its turn.
SLICE = 1000
# Names read of a directory at a time.
BATCH = 256
# About 200 bytes each are remembered.
MAX_DEPTH = 10_000

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# The entry changed between being listed and being removed: list again.
_CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENOTEMPTY, errno.EEXIST)


def remove_tree(parent: int, name: str, path: str, *, force: bool = False) -> Steps:
    """Removes the directory ``name`` of ``parent``. The result has ``count``.

    ``force`` lets the owner into directories that are closed to the owner as well.
    """
    with naming(path):
        emptying = _Emptying(_enter(parent, name, force), path, force)
    try:
        while not emptying.advance():
            yield None
    finally:
        emptying.close()
    with naming(path):
        os.rmdir(name, dir_fd=parent)
    return {"count": emptying.removed + 1}


def remove_folder(path: str) -> None:
    """Remove a folder and whatever lies in it, through no link; nothing where it is gone. Raises
    OSError."""
    above, name = os.path.split(path)
    parent = os.open(above, _DIRECTORY | os.O_CLOEXEC)
    try:
        for _slice in remove_tree(parent, name, path, force=True):
            pass
    except RequestError as error:
        raise OSError(error.errno or errno.EIO, str(error), path) from None
    except FileNotFoundError:
        return
    finally:
        os.close(parent)


class _Emptying:
    def __init__(self, fd: int, path: str, force: bool) -> None:
        """Owns ``fd``."""
        try:
            self._top, self._fd = fd, os.dup(fd)
        except OSError:
            os.close(fd)
            raise
        self._force = force
        self._path = path
        # Of every directory above the present one: what it is, and the name gone down by.
        self._trail: list[tuple[tuple[int, int], str]] = []
        self.removed = 0

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._top)

    def advance(self) -> bool:
        """One slice; True when the top directory is empty."""
        left = SLICE
        while left > 0:
            names = self._list()
            if not names and not self._trail:
                return True
            if not names:
                self._ascend()
            left -= 1 + len(names)
            for name, is_directory in names:
                if not self._remove(name, is_directory):
                    self._descend(name)
                    break
        return False

    def _list(self) -> list[tuple[str, bool]]:
        with naming(self._where()), os.scandir(self._fd) as entries:
            return [(e.name, e.is_dir(follow_symlinks=False)) for e in islice(entries, BATCH)]

    def _remove(self, name: str, is_directory: bool) -> bool:
        """False for a directory that is not empty."""
        try:
            if is_directory:
                os.rmdir(name, dir_fd=self._fd)
            else:
                os.unlink(name, dir_fd=self._fd)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            if error.errno not in _CHANGED:
                raise OSError(error.errno, error.strerror, self._where(name)) from None
            return True
        self.removed += 1
        return True

    def _descend(self, name: str) -> None:
        try:
            if len(self._trail) >= MAX_DEPTH:
                self._lift(name)
                return
            below = _enter(self._fd, name, self._force)
        except OSError as error:
            if error.errno in _CHANGED:
                return
            raise OSError(error.errno, error.strerror, self._where(name)) from None
        self._trail.append((_identity(self._fd), name))
        os.close(self._fd)
        self._fd = below

    def _lift(self, name: str) -> None:
        """Move a directory to the top, which is listed again once the way back leads there."""
        if self._force:
            open_up(self._fd, name)
        new = f".removed-{os.urandom(8).hex()}"
        os.rename(name, new, src_dir_fd=self._fd, dst_dir_fd=self._top)

    def _ascend(self) -> None:
        identity, name = self._trail.pop()
        with naming(self._where(name)):
            above = open_at(self._fd, "..", _DIRECTORY)
        os.close(self._fd)
        self._fd = above
        if _identity(above) != identity:
            raise RequestError(f"{self._path} was moved while it was removed: try again")
        self._remove(name, True)

    def _where(self, *more: str) -> str:
        """The path for a message; of a deep one, the beginning."""
        return "/".join([self._path, *(name for _, name in self._trail[:64]), *more])


def _enter(dir_fd: int, name: str, force: bool) -> int:
    try:
        if force:
            open_up(dir_fd, name)
        return open_at(dir_fd, name, _DIRECTORY, RESOLVE_NO_XDEV)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise RequestError(
            f"{name!r} is a mount point: remove what is in it instead", errno.EBUSY
        ) from None


def open_up(dir_fd: int, name: str | bytes) -> None:
    """Lets its owner read, enter and change a directory, whatever its name means a moment later.
    Raises OSError."""
    with _mode_of(dir_fd, name) as (fd, mode):
        if mode & 0o700 != 0o700:
            _change_mode(fd, mode | 0o700)


@contextmanager
def opened_up(dir_fd: int, name: str | bytes) -> Iterator[None]:
    """Does so, and takes it back where the block fails. Raises OSError; PermissionError, too,
    where it is no directory, which no mode of its own keeps in its place."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with _mode_of(dir_fd, name) as (fd, mode):
        _change_mode(fd, mode | 0o700)
        try:
            yield
        except BaseException:
            _change_mode(fd, mode)
            raise


@contextmanager
def _mode_of(dir_fd: int, name: str | bytes) -> Iterator[tuple[int, int]]:
    """The directory, opened as a path alone, and its mode."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    fd = open_at(dir_fd, os.fsdecode(name), flags, RESOLVE_NO_XDEV)
    try:
        yield fd, stat.S_IMODE(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def _change_mode(fd: int, mode: int) -> None:
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)  # fchmod(2) takes no path
    except OSError:  # there is no /proc, or Landlock closes it
        again = os.open(".", _DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        try:
            os.fchmod(again, mode)
        finally:
            os.close(again)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
