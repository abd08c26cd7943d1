"""The names by which daemons find a supervisor: a socket, and a lock beside it."""

import contextlib
import os
import socket

from agentd.linux import locks


class OwnSocket:
    """The socket ``path`` and its lock, of one supervisor at a time. Who clears the folder removes
    names alone, while we and our sandboxes live on: ``keep`` makes them anew."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = -1
        #: Where they connect, from ``listen`` on.
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._file = os.fstat(self.listener.fileno())

    def take(self) -> bool:
        """Return whether the lock is ours now; else another has it. Raises OSError."""
        try:
            lock = locks.take(f"{self._path}.lock")
        except BlockingIOError:
            return False
        try:
            os.ftruncate(lock, 0)
            os.write(lock, b"%d\n" % os.getpid())
        except BaseException:
            os.close(lock)
            raise
        before, self._lock = self._lock, lock
        if before >= 0:
            os.close(before)
        return True

    def listen(self, tick: float) -> None:
        """Listen, in place of whatever has the name: we hold the lock. ``accept`` waits ``tick``
        seconds. Raises OSError; what was listened on before is still there then."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.fchmod(listener.fileno(), 0o600)  # which its file has from the first moment on
            listener.bind(self._path)
            listener.listen(8)
            listener.settimeout(tick)
            self._file = os.stat(self._path)
        except BaseException:
            listener.close()
            raise
        self.listener.close()
        self.listener = listener

    def keep(self, tick: float) -> bool:
        """Make anew what was removed; return False where another has our place by now. What cannot
        be made, the folder being gone, say, is made another time."""
        with contextlib.suppress(OSError):
            if not _is(f"{self._path}.lock", os.fstat(self._lock)) and not self.take():
                return False
            if not _is(self._path, self._file):
                self.listen(tick)
        return True

    def is_removed(self) -> bool:
        """Return whether one of the names is not ours any more."""
        try:
            lock, ours = f"{self._path}.lock", os.fstat(self._lock)
            return not (_is(lock, ours) and _is(self._path, self._file))
        except OSError:  # nobody can tell: it is looked at again
            return False

    def close(self) -> None:
        """Removes the socket; idempotent. The lock stays until we end."""
        with contextlib.suppress(OSError):
            if _is(self._path, self._file):
                os.unlink(self._path)
        self.listener.close()


def _is(path: str, file: os.stat_result) -> bool:
    """Raises OSError, but not where nothing is there."""
    try:
        return os.path.samestat(os.lstat(path), file)
    except FileNotFoundError:
        return False
