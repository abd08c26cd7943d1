"""A running sandbox of the ``linux`` backend, whose disk the host can see."""

import contextlib
import os
from collections.abc import Callable, Iterator

from agentd.model.errors import BackendLost, SandboxError
from agentd.sandbox.backends.linux import kept, saving
from agentd.sandbox.backends.wall import NamespaceWall


class LinuxWall(NamespaceWall):
    """Its snapshots hold its files, and none of its processes.

    ``attach_disk`` is called once, right after construction.
    """

    fidelity = "files"
    #: The digest of the image that it started of; empty without one.
    image = ""
    #: What that runs where nobody says what.
    command: tuple[str, ...] = ()

    def attach_disk(self, disk: int | None) -> None:
        """Takes ownership of a descriptor of its tmpfs, as the sandbox had it before anything ran
        in it: what is mounted over it there is not in the way. None where it could not pass it."""
        if disk is None:
            why = "this user's processes had too many descriptors on their way as it was made"
            self.lacks = {**self.lacks, "snapshot": why, "fork": why}
            return
        self._disk = disk
        self._on_end = (*self._on_end, lambda: os.close(disk))

    def attach_image(
        self, digest: str, command: tuple[str, ...], release: Callable[[], None]
    ) -> None:
        """Have the image that it started of released once it has ended."""
        self.image, self.command = digest, command
        self._on_end = (*self._on_end, release)

    def snapshot(self, folder: str) -> None:
        """Write its files beneath ``folder``; it stands still meanwhile where a cgroup can have it
        so. Raises SandboxError, and BackendLost once it is killed."""
        first = None if self._block is None else self._block.id
        with self._disk_open() as disk, self._still() as still:
            try:
                saving.save(folder, disk, first, still=still, check=self._check)
                if self.image:
                    kept.write_image(folder, self.image)
            except OSError as error:
                raise SandboxError(
                    "the snapshot cannot be written", cause=error.strerror or str(error)
                ) from error

    def _check(self) -> None:
        if self._first_killed or self._empty:
            raise BackendLost(f"sandbox {self.id} was killed")

    @contextlib.contextmanager
    def _disk_open(self) -> Iterator[int]:
        """For as long as we need it, whoever ends the sandbox meanwhile."""
        with self._lock:
            self._check()
            disk = os.dup(self._disk)
        try:
            yield disk
        finally:
            os.close(disk)

    @contextlib.contextmanager
    def _still(self) -> Iterator[bool]:
        """Yields whether nothing runs in it within; it goes on afterwards, unless it was paused."""
        if self._paused or not self._pause_if_able():
            yield self._paused
            return
        try:
            yield True
        finally:
            with contextlib.suppress(BackendLost):  # it was killed
                self.resume()

    def _pause_if_able(self) -> bool:
        if "pause" in self.lacks:
            return False
        try:
            self.pause()
        except SandboxError:
            self._check()
            return False  # its processes could not be stopped in time
        return True
