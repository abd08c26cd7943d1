"""A process that need not be a child, by a descriptor that no other can come to stand for."""

import contextlib
import os
import select
import signal
import threading


class Pidfd:
    """Thread-safe. Owns ``fd`` until ``close``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it has ended; False when it has not within ``timeout`` seconds. It counts as
        ended once this is closed."""
        try:
            fd = self.duplicate()  # another thread may close ours meanwhile
        except ProcessLookupError:
            return True
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(None if timeout is None else timeout * 1000))
        finally:
            os.close(fd)

    def kill(self) -> None:
        """Sends SIGKILL; does nothing where it has ended. Raises PermissionError, OSError."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._fd >= 0:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def duplicate(self) -> int:
        """Returns another descriptor of it, close-on-exec, the caller's. Raises ProcessLookupError
        once this is closed."""
        with self._lock:
            if self._fd < 0:
                raise ProcessLookupError("the process's descriptor is closed")
            return os.dup(self._fd)

    def close(self) -> None:
        """Closes it; idempotent."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()
