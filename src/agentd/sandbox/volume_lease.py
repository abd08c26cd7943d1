"""Volumes that a sandbox has: each leased for as long as its wall stands."""

import contextlib
import os
from contextvars import ContextVar

#: The id of the sandbox that a wall is being built for. Set around ``launch``.
holder: ContextVar[str] = ContextVar("holder", default="")


class VolumeLease:
    """A volume in use: it is not removed until this is closed, or its process has ended.

    ``first_id`` is as in ``VolumeAbout``."""

    def __init__(self, first_id: int | None, entry: str, fd: int) -> None:
        """Owns ``fd``, the lock of the file ``entry``."""
        self.first_id = first_id
        self._entry = entry
        self._fd = fd

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._entry)
            os.close(fd)
