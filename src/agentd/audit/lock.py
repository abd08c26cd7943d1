"""One writer a directory: a lock (flock(2)) on a file in it, which names who holds it.

The kernel lets go of it when the holder has died.
"""

import fcntl
import os
import time

from agentd.audit.errors import AuditError, AuditLocked
from agentd.model.system import os_errors_as

NAME = "lock"
_FIRST_WAIT = 0.001
_LAST_WAIT = 0.02


class Lock:
    """``acquire`` and ``release`` in turns, ``close`` at the end. Not thread-safe."""

    def __init__(self, directory: str) -> None:
        """Raises AuditError."""
        self._directory = directory
        self._path = os.path.join(directory, NAME)
        self._fd = self._opened()

    def acquire(self, wait: float = 0.0) -> None:
        """Waits ``wait`` seconds at most. Raises AuditLocked, AuditError."""
        deadline = time.monotonic() + wait
        pause = _FIRST_WAIT
        while not self._taken():
            if time.monotonic() >= deadline:
                raise AuditLocked(
                    f"the audit log {self._directory} is in use by {self._holder()}",
                    remediation="stop that process, or use another directory",
                )
            time.sleep(pause)
            pause = min(2 * pause, _LAST_WAIT)
        os.pwrite(self._fd, f"{os.getpid():<20}\n".encode(), 0)

    def release(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Idempotent. The file stays: removing it would let two hold locks on two files."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _opened(self) -> int:
        with os_errors_as(
            AuditError,
            f"cannot open the lock {self._path}",
            "make the directory writable for this user",
        ):
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(self._fd), os.lstat(self._path)):
                return True
        except BlockingIOError:
            return False
        except FileNotFoundError:
            if not os.path.isdir(self._directory):
                return True  # nobody has another; who writes to the log tells that it is gone
        # It was removed: others hold the lock of another by now.
        self.close()
        self._fd = self._opened()
        return self._taken()

    def _holder(self) -> str:
        text = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
        return f"process {text}" if text.isdigit() else "another process"
