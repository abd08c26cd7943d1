"""Where what is copied out of a sandbox is made, beside its target, before it takes its place.

A folder called ``.agentd-cp-...``, which is locked as long as its process lives: one that a killed
process left is removed by the next.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from agentd.model.errors import InvalidInput, OperationFailed

_PREFIX = ".agentd-cp-"
_NAME = b"new"
_OLD = b"old"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.ENOTSUP)


class Stage:
    """Makes the entry ``name`` of the directory ``fd``, and puts it into the place of ``target``.

    Raises OperationFailed where there is no room for it.
    """

    name = _NAME

    def __init__(self, target: str) -> None:
        self._target = os.path.abspath(target)
        self._parent = os.path.dirname(self._target)
        self.fd = -1

    def __enter__(self) -> Self:
        _sweep(self._parent)
        try:
            self._folder = tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent)
        except OSError as error:
            raise OperationFailed(
                f"cannot write to {self._parent}",
                cause=error.strerror or "",
                errno=error.errno or 0,
                remediation="make the folder, or choose another",
            ) from None
        self.fd = os.open(self._folder, _FOLDER)
        with contextlib.suppress(OSError):  # not every filesystem has locks
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _remove(self._folder)
        os.close(self.fd)

    def place(self, *, replace: bool) -> None:
        """Raises InvalidInput where something is there, and is not to be replaced."""
        try:
            self._put(os.fsencode(self._target), replace)
        except OSError as error:
            raise OperationFailed(
                f"{self._target} cannot be put there",
                cause=error.strerror or "",
                errno=error.errno or 0,
                remediation="a mount point, or what another user owns, is not replaced: write "
                f"{self._target}/ to copy into it, or choose another",
            ) from None

    def _put(self, target: bytes, replace: bool) -> None:
        try:
            _rename(self.fd, _NAME, target, _NOREPLACE)
            return
        except FileExistsError:
            if not replace:
                raise exists(self._target) from None
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            if os.path.lexists(target) and not replace:
                raise exists(self._target) from None
        try:
            _rename(self.fd, _NAME, target, _EXCHANGE)
        except OSError as error:
            if error.errno not in (*_CANNOT, errno.ENOENT):
                raise
            self._in_two_steps(target)

    def _in_two_steps(self, target: bytes) -> None:
        """Where the filesystem cannot exchange two names."""
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, _OLD, dst_dir_fd=self.fd)
        try:
            os.rename(_NAME, target, src_dir_fd=self.fd)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.rename(_OLD, target, src_dir_fd=self.fd)
            raise


def exists(path: str) -> InvalidInput:
    return InvalidInput(
        f"{path} exists already",
        remediation="remove it; or replace it: -f, in the SDK replace=True",
    )


def check_replaceable(path: str) -> None:
    """Raises InvalidInput for a folder that nobody means to replace as a whole."""
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


def _rename(source: int, name: bytes, target: bytes, flags: int) -> None:
    """renameat2(2), which Python has not."""
    call = ctypes.CDLL(None, use_errno=True).renameat2
    if call(source, name, _AT_FDCWD, target, flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(target))


def _sweep(parent: str) -> None:
    """Remove what killed processes left here; never what holds something that was moved away."""
    for folder in _left_in(parent):
        try:
            fd = os.open(folder, _FOLDER)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_uid == os.geteuid() and os.fsdecode(_OLD) not in os.listdir(fd):
                _remove(folder)
        except OSError:
            continue  # it is at work, or there are no locks here
        finally:
            os.close(fd)


def _left_in(parent: str) -> Iterator[str]:
    try:
        names = os.listdir(parent)
    except OSError:
        return
    yield from (os.path.join(parent, name) for name in names if name.startswith(_PREFIX))


def _remove(folder: str) -> None:
    """All of it, folders too that nobody may write to; none but us can reach it."""
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        for above, names, _ in os.walk(folder):
            for name in names:
                with contextlib.suppress(OSError):
                    os.chmod(os.path.join(above, name), 0o700, follow_symlinks=False)
        shutil.rmtree(folder, ignore_errors=True)
