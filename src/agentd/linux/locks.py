"""Locks on files (flock(2)): the kernel gives one back when its holder has died, however it did."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import Self

_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_POLL_SECONDS = 0.005


class HeldLock:
    """Owns the descriptor of a lock: what is locked by it is in use until this is closed."""

    def __init__(self, fd: int) -> None:
        """``fd`` is -1 where somebody else has it in use for as long."""
        self._fd = fd

    def close(self) -> None:
        """Gives it back; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def take(path: str, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> int:
    """Returns a descriptor that holds a file's lock. The file is made if it is not there, or no
    more.

    Raises OSError, of it BlockingIOError where another has it and ``how`` does not wait.
    """
    while True:
        fd = os.open(path, _FILE, 0o600)
        try:
            fcntl.flock(fd, how)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.lstat(path)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # removed while we waited: others have the lock of another by now


def take_within(path: str, seconds: float, by: Callable[[str], int] = take) -> int:
    """Takes a lock as ``by`` does, and waits so many seconds for another who has it. Raises
    OSError, of it BlockingIOError where that was not enough."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return by(path)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_SECONDS)


def take_folder(path: str) -> int:
    """Returns a descriptor that holds the lock of a folder itself, whose files may be removed; -1
    on a file system that has none for folders. Raises OSError as ``take`` does."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError:  # NFS has such locks for what is open for writing alone
        os.close(fd)
        return -1
    return fd


@contextlib.contextmanager
def held(path: str) -> Iterator[None]:
    """Holds a lock alone within the block, waiting for whoever has it. Raises OSError."""
    fd = take(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)
