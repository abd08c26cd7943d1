"""One daemon a store: a lock (flock(2)) on a file beside it, which names who holds it.

The kernel lets go of it when the holder has died. Descriptors of it are closed on exec, but a
child that is forked and never executes anything would go on holding it.
"""

import fcntl
import os

from agentd.daemon.store.errors import StoreError, StoreLocked
from agentd.model.system import os_errors_as


class OwnerLock:
    """Held from here until ``close``. Raises StoreLocked, StoreError."""

    def __init__(self, path: str) -> None:
        self.path = path
        with os_errors_as(StoreError, f"cannot open the lock {path}"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = _holder(self._fd)
            os.close(self._fd)
            raise StoreLocked(
                f"the store {os.path.dirname(path)} is in use by {holder}",
                remediation="stop that daemon, or give this one another --state directory",
            ) from None
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Idempotent. The file stays: removing it would let two hold locks on two files."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _holder(fd: int) -> str:
    text = os.pread(fd, 32, 0).decode(errors="replace").strip()
    if not text.isdigit():  # it has the lock, and has not written its pid yet
        return "another process"
    if not os.path.exists(f"/proc/{text}"):
        return f"a child of process {text}, which has ended"
    return f"process {text}"
