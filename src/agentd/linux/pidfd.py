"""A process that need not be a child, by a descriptor that no other can come to stand for."""

import contextlib
import os
import signal
import threading
import time

from agentd.linux.waiting import is_ready

_POLL_SECONDS = 0.005


class Pidfd:
    """Thread-safe. Owns ``fd`` until ``close``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it has ended; False when it has not within ``timeout`` seconds. It counts as
        ended once this is closed."""
        if timeout == 0:
            return self._has_ended()
        try:
            fd = self.duplicate()  # another thread may close ours meanwhile
        except ProcessLookupError:
            return True
        except OSError:  # no descriptor is left
            return self._look_until(timeout)
        try:
            return is_ready(fd, timeout)
        finally:
            os.close(fd)

    def _has_ended(self) -> bool:
        with self._lock:
            return self._fd < 0 or is_ready(self._fd)

    def _look_until(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._has_ended():
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

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
