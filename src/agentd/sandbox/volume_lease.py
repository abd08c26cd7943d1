"""Volumes that a sandbox has: each leased for as long as its wall stands."""

import contextlib
import os
from contextvars import ContextVar

from agentd.model.units import readable_size

#: The id of the sandbox that a wall is being built for. Set around ``launch``.
holder: ContextVar[str] = ContextVar("holder", default="")


class VolumeLease:
    """A volume in use: it is not removed until this is closed, or its process has ended.

    ``first_id`` and ``size`` are as in ``VolumeAbout``; ``image`` is the file with the file system
    that it has of its own, or empty."""

    def __init__(
        self, first_id: int | None, entry: str, fd: int, image: str = "", size: int | None = None
    ) -> None:
        """Owns ``fd``, the lock of the file ``entry``."""
        self.first_id = first_id
        self.image = image
        self.size = size
        self._entry = entry
        self._fd = fd

    @property
    def bound(self) -> str:
        """Tells how much it holds, for the report."""
        if self.size is None:
            return "nothing bounds its size"
        return f"at most {readable_size(self.size)}, a file system of its own"

    def close(self) -> None:
        """Gives it back; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._entry)
            os.close(fd)
