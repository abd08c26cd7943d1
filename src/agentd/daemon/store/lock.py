"""One daemon a store: locks (flock(2)) on its folder, and on a file in it that names the holder.

The kernel lets go of them when the holder has died. Descriptors of them are closed on exec, but a
child that is forked and never executes anything would go on holding them. The file alone is what
older daemons hold, and it can be removed.
"""

import contextlib
import fcntl
import os

from agentd.daemon.store.errors import StoreError, StoreLocked
from agentd.linux.locks import HeldLock, take_folder
from agentd.model.system import os_errors_as


class OwnerLock:
    """Holds the locks until ``close``. Raises StoreLocked, StoreError."""

    def __init__(self, path: str) -> None:
        self.path = path
        folder = os.path.dirname(path)
        with contextlib.ExitStack() as held, os_errors_as(StoreError, f"cannot lock {path}"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            held.callback(os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.enter_context(HeldLock(take_folder(folder)))
            except BlockingIOError:
                raise StoreLocked(
                    f"the store {folder} is in use by {_holder(fd)}",
                    remediation="stop that daemon, or give this one another --state directory",
                ) from None
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            self._held = held.pop_all()

    def close(self) -> None:
        """Release them; the file stays, or two could hold locks on two files. Idempotent."""
        self._held.close()


def _holder(fd: int) -> str:
    text = os.pread(fd, 32, 0).decode(errors="replace").strip()
    if not text.isdigit():  # it has not written its pid yet, or its file was removed
        return "another process"
    if not os.path.exists(f"/proc/{text}"):
        return f"a child of process {text}, which has ended"
    return f"process {text}"
