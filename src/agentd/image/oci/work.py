"""Folders of pulls, builds and pushes that go on: each locked for as long as its process lives.

FOLDER/NAME/live.lock   held by the process
FOLDER/NAME/files/      what it works on: gone before the lock is given back, so that no other
                        process begins to remove what its owner removes
"""

import contextlib
import os
import tempfile
from typing import TYPE_CHECKING

from agentd.guest.removal import remove_folder
from agentd.image.oci import layout
from agentd.linux import locks

if TYPE_CHECKING:
    from agentd.image.oci.steps import BuiltStep

_LIVE, _FILES = "live.lock", "files"


class WorkFolder:
    """``layout`` is ours and has what was verified, ``unpacked`` is the new root's with what
    describes it, or empty where there is one; ``steps`` are of a build."""

    def __init__(self, above: str) -> None:
        """Make it, in use until it is closed. Under the store's lock. Raises OSError."""
        self._top = tempfile.mkdtemp(dir=above)
        self.path = os.path.join(self._top, _FILES)
        self.layout = os.path.join(self.path, "layout")
        self.blobs = layout.blobs_of(self.layout)
        self.unpacked = ""
        self.steps: dict[str, BuiltStep] = {}
        self._live = locks.HeldLock(locks.take(os.path.join(self._top, _LIVE)))
        try:
            os.mkdir(self.path, 0o700)
        except OSError:
            self.close()
            raise

    def make(self, name: str) -> str:
        path = os.path.join(self.path, name)
        os.mkdir(path, 0o700)
        return path

    def close(self) -> None:
        """Remove it; what cannot be is the next sweep's."""
        with self._live, contextlib.suppress(OSError):
            remove_folder(self.path)
            os.unlink(os.path.join(self._top, _LIVE))
            os.rmdir(self._top)


def sweep(above: str) -> int:
    """Remove the folders of dead processes; the bytes that were freed. Under the store's lock."""
    freed = 0
    for name in os.listdir(above) if os.path.isdir(above) else ():
        path = os.path.join(above, name)
        try:
            live = locks.take(os.path.join(path, _LIVE))
        except (BlockingIOError, FileNotFoundError):  # in use, or removed by its owner just now
            continue
        with locks.HeldLock(live):
            freed += size_of(path)
            remove_folder(path)
    return freed


def size_of(path: str) -> int:
    """Return the bytes on disk of all that lies in a folder."""
    total = 0
    for _, folders, files, fd in os.fwalk(path):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                total += os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512
    return total
