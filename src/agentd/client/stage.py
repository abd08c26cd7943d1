"""Where what is copied out of a sandbox is made, beside its target, before it takes its place.

A folder called ``.agentd-cp-...``, which is locked as long as its process lives: one that a killed
process left is removed by the next.
"""

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from typing import Self

from agentd.guest.operation import RequestError
from agentd.guest.removal import opened_up, remove_tree
from agentd.linux import abi, mounts
from agentd.linux.kernel import KERNEL
from agentd.linux.replacing import is_device
from agentd.model.errors import InvalidInput, OperationFailed

_PREFIX = ".agentd-cp-"
_NAME = b"new"
_OLD = b"old"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES = 100
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.ENOTSUP)


class Stage:
    """Makes the entry ``name`` of the directory ``fd``, and puts it into the place of ``target``.

    The folder of the target is opened once. Who may rename in it, or above it, can then neither
    lead what is written elsewhere, nor what is removed. Raises OperationFailed where there is no
    room for it.
    """

    name = _NAME

    def __init__(self, target: str) -> None:
        self._target = target
        self._parent = -1
        self.fd = -1

    def __enter__(self) -> Self:
        above, name = os.path.split(self._target)
        self._name = os.fsencode(name)
        try:
            self._parent = os.open(above or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            _sweep(self._parent)
            self._folder, self.fd = _made(self._parent)
        except OSError as error:
            self._close()
            raise OperationFailed(
                f"cannot write to {os.path.abspath(above)}",
                cause=error.strerror or "",
                errno=error.errno or 0,
                remediation="make the folder, or choose another",
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        try:
            _remove(self._parent, self._folder, self.fd)
        finally:
            self._close()

    def _close(self) -> None:
        for fd in (self.fd, self._parent):
            if fd >= 0:
                os.close(fd)
        self.fd = self._parent = -1

    def place(self, *, replace: bool) -> None:
        """Put it in its place. Raises InvalidInput where something is there, not to be replaced."""
        try:
            self._put(self._name, replace)
        except OSError as error:
            raise OperationFailed(
                f"{self._target} cannot be put there",
                cause=error.strerror or "",
                errno=error.errno or 0,
                remediation="what is mounted, another user's or closed to writing is not replaced: "
                f"write {self._target}/ to copy into it, or choose another",
            ) from None

    def _put(self, target: bytes, replace: bool) -> None:
        try:
            KERNEL.renameat2(self.fd, _NAME, self._parent, target, abi.RENAME_NOREPLACE)
            return
        except FileExistsError:
            if not replace:
                raise exists(self._target) from None
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            if not replace and self._is_there(target):
                raise exists(self._target) from None
        try:
            self._exchange(target)
        except PermissionError:  # as of a folder that its owner may not write in
            with opened_up(self._parent, target):
                self._exchange(target)

    def _exchange(self, target: bytes) -> None:
        try:
            KERNEL.renameat2(self.fd, _NAME, self._parent, target, abi.RENAME_EXCHANGE)
        except OSError as error:
            if error.errno not in (*_CANNOT, errno.ENOENT):
                raise
            self._in_two_steps(target)

    def _is_there(self, target: bytes) -> bool:
        try:
            os.stat(target, dir_fd=self._parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _in_two_steps(self, target: bytes) -> None:
        """Where the filesystem cannot exchange two names."""
        above = self._parent
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, _OLD, src_dir_fd=above, dst_dir_fd=self.fd)
        try:
            os.rename(_NAME, target, src_dir_fd=self.fd, dst_dir_fd=above)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.rename(_OLD, target, src_dir_fd=self.fd, dst_dir_fd=above)
            raise


def exists(path: str) -> InvalidInput:
    return InvalidInput(
        f"{path} exists already",
        remediation="remove it; or replace it: -f, in the SDK replace=True",
    )


def check_replaceable(path: str) -> None:
    """Check a target. Raises InvalidInput for a folder that nobody means to replace whole, and for
    a device: who names /dev/null, or /dev/stdout, means what it is."""
    with contextlib.suppress(FileNotFoundError):
        if is_device(os.lstat(path).st_mode, os.path.dirname(path) or "."):
            raise InvalidInput(
                f"{path} is a device, which nothing replaces", remediation="name another place"
            )
    if os.path.islink(path) or not os.path.isdir(path):
        return
    real = os.path.realpath(path)
    here = os.path.realpath(os.curdir)
    if real == os.path.realpath(os.path.expanduser("~")) or f"{here}/".startswith(
        real.rstrip("/") + "/"
    ):
        raise InvalidInput(
            f"{path} is not replaced as a whole: it is your home, or you are in it",
            remediation=f"to copy into it, write {path.rstrip('/')}/",
        )
    mounted = next(_mounts_below(real), None)
    if mounted is not None:
        raise InvalidInput(
            f"{path} is not replaced as a whole: {mounted} is a mount point in it",
            remediation="unmount that first, or choose another",
        )


def _mounts_below(real: str) -> Iterator[str]:
    below = f"{real.rstrip('/')}/"
    with contextlib.suppress(OSError):  # without a /proc the exchange itself tells
        yield from (point for point in mounts.points() if point.startswith(below))


def _made(parent: int) -> tuple[str, int]:
    """Make a new folder of ours, locked: its name, and its descriptor."""
    for _ in range(_TRIES):
        name = f"{_PREFIX}{secrets.token_hex(6)}"
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
            fd = os.open(name, _FOLDER, dir_fd=parent)
        except (FileExistsError, FileNotFoundError):
            continue  # another one that starts here took it for left behind before it was locked
        if _is_ours(fd) and _locked(fd) and _is_at(parent, name, fd):
            return name, fd
        os.close(fd)
    raise OSError(errno.EBUSY, "others remove what is made there")


def _is_ours(fd: int) -> bool:
    info = os.fstat(fd)
    return info.st_uid == os.geteuid() and not info.st_mode & 0o077


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # not every filesystem has locks, and then nobody clears up either
    return True


def _is_at(parent: int, name: str, fd: int) -> bool:
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(fd))


def _sweep(parent: int) -> None:
    """Remove what killed processes left here; never what holds anything else, as what was moved."""
    for name in _left_in(parent):
        try:
            fd = os.open(name, _FOLDER, dir_fd=parent)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_ours(fd) and set(os.listdir(fd)) <= {os.fsdecode(_NAME)}:
                _remove(parent, name, fd)
        except OSError:
            continue  # it is at work, or there are no locks here
        finally:
            os.close(fd)


def _left_in(parent: int) -> Iterator[str]:
    try:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        return
    try:
        names = os.listdir(fd)
    finally:
        os.close(fd)
    yield from (name for name in names if name.startswith(_PREFIX))


def _remove(parent: int, name: str, fd: int) -> None:
    """The folder ``fd``, with what is in it, folders too that nobody may write to."""
    for item in os.listdir(fd):
        with contextlib.suppress(OSError, RequestError):
            try:
                os.unlink(item, dir_fd=fd)
            except (IsADirectoryError, PermissionError):
                for _ in remove_tree(fd, item, item, force=True):
                    pass
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=parent)
