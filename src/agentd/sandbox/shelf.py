"""Where a process keeps the snapshots that it was given no path for: on disk, until it ends.

A process that was killed leaves its folder behind; the next one that keeps snapshots removes it.
Whether an owner lives is told by the lock it holds (flock(2)): the kernel lets go of it.
"""

import os
import shutil
import tempfile
import threading

from agentd.image import cache
from agentd.linux import locks
from agentd.model.errors import SandboxError
from agentd.model.system import scarce

_PREFIX = "p-"
_LOCK = "lock"


class Shelf:
    """Thread-safe; nothing is made before ``folder`` is asked for."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._folder: str | None = None
        self._lock = locks.HeldLock(-1)

    def folder(self) -> str:
        """Returns this process's own, mode 0700. Raises SandboxError."""
        with self._guard:
            try:
                if self._folder is None:
                    self._folder = self._make()
                return self._folder
            except OSError as error:
                raise SandboxError(
                    "there is no place for snapshots",
                    cause=str(error),
                    remediation=scarce(error)
                    or "set XDG_CACHE_HOME to a directory of yours with room",
                ) from error

    def new_folder(self) -> str:
        """Makes an empty one in it, mode 0700."""
        return tempfile.mkdtemp(prefix="state-", dir=self.folder())

    def close(self) -> None:
        """Delete all of it; idempotent."""
        with self._guard:
            folder, self._folder = self._folder, None
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            self._lock.close()

    def _make(self) -> str:
        # /tmp is memory on many machines, and a snapshot is as large as a guest.
        base = cache.own_folder("snapshots")
        if base is None:
            return tempfile.mkdtemp(prefix="agentd-snapshots-")
        # Nobody sweeps between a folder's making and its locking.
        with locks.held(os.path.join(base, _LOCK)):
            _sweep(base)
            folder = tempfile.mkdtemp(prefix=_PREFIX, dir=base)
            self._lock = locks.HeldLock(locks.take(os.path.join(folder, _LOCK)))
        return folder


def _sweep(base: str) -> None:
    """Remove the folders whose owners have ended."""
    for name in os.listdir(base):
        folder = os.path.join(base, name)
        if not name.startswith(_PREFIX):
            continue
        try:
            lock = locks.HeldLock(locks.take(os.path.join(folder, _LOCK)))
        except OSError:
            continue
        with lock:
            shutil.rmtree(folder, ignore_errors=True)
