"""Who writes to a shared log and lives: a file each, which its process has a lock on (flock(2)).

The kernel lets go of the lock when the process has died, in whatever pid namespace: what it had
begun, and what only it could end, is found by the name that its START records have.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator

from agentd.audit.errors import AuditError
from agentd.model.system import os_errors_as

FIELD = "writer"  # of a START in a shared log
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES = 8


class WriterOnce:
    """This process, until ``close``. What it forks without a new program keeps it alive, too."""

    def __init__(self, directory: str, seq: int) -> None:
        """``seq``: all that it begins is behind this record. Raises AuditError."""
        self._directory = directory
        self._owner = os.getpid()
        with os_errors_as(
            AuditError,
            f"cannot write in {directory}",
            "make it writable for this user, and see that its disk has room",
        ):
            os.makedirs(directory, 0o700, exist_ok=True)
            self.name, self._fd = self._made()
            os.pwrite(self._fd, b"%d\n" % seq, 0)

    def close(self) -> None:
        """Say that all it began has ended. A forked copy lets go of it alone."""
        if os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._directory, self.name))
        os.close(self._fd)

    def _made(self) -> tuple[str, int]:
        for _ in range(_TRIES):
            name = secrets.token_hex(8)
            path = os.path.join(self._directory, name)
            fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return name, fd
            os.close(fd)  # another one that starts took it for a dead one's before it was locked
        raise OSError("others remove what is made there")


@contextlib.contextmanager
def dead(directory: str) -> Iterator[dict[str, int]]:
    """Name those who died in the midst, and the record behind which is all that they began.

    Within the block nobody else has them; after it, unless it raises, they are forgotten.
    """
    with contextlib.ExitStack() as locks:
        found: dict[str, int] = {}
        for name in _names(directory):
            path = os.path.join(directory, name)
            try:
                fd = os.open(path, _FLAGS)
            except OSError:
                continue  # it has ended meanwhile
            locks.callback(os.close, fd)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_nlink:
                    text = os.pread(fd, 32, 0).strip()
                    found[name] = int(text) if text.isdigit() else 0
        yield found
        for name in found:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
