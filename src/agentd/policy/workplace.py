"""Folders to compile in: each goes with its maker, or after one that was killed, with the next.

Whether a maker lives is told by the lock that it holds on the folder (flock(2)), which the kernel
lets go of.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator

PREFIX = "agentd-policy-"
# Between mkdir and flock a folder looks dead, and what a worker starts with is never locked.
_YOUNG_SECONDS = 3600.0


@contextlib.contextmanager
def workplace(parent: str | None = None) -> Iterator[str]:
    """Make an empty folder, mode 0700, in ``parent`` or where temporary files are, and remove it in
    the end. Raises OSError."""
    base = parent or tempfile.gettempdir()
    _sweep(base)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=base) as folder:
        fd = _opened(folder)
        try:
            with contextlib.suppress(OSError):  # NFS has none for folders, and no dead one is known
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(fd)


def _sweep(base: str) -> None:
    """Remove those of ours whose makers have ended."""
    with os.scandir(base) as found:
        names = [entry.path for entry in found if entry.name.startswith(PREFIX)]
    for path in names:
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            if is_ours and status.st_mtime < time.time() - _YOUNG_SECONDS:
                _remove(path)


def _remove(path: str) -> None:
    """Raises OSError, of it BlockingIOError where its maker lives."""
    fd = _opened(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(fd)


def _opened(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
