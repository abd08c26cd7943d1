"""A running sandbox of the ``linux`` backend, whose disk the host can see."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial

from agentd.linux import process
from agentd.model.errors import BackendLost, SandboxError
from agentd.model.system import os_errors_as
from agentd.sandbox.backends.linux import kept, saving, shared_layer
from agentd.sandbox.backends.linux.disk import SandboxDisk
from agentd.sandbox.backends.linux.network import SandboxNetwork, give_abilities
from agentd.sandbox.backends.wall import NamespaceWall

_written = partial(os_errors_as, SandboxError, "the snapshot cannot be written")


class LinuxWall(NamespaceWall):
    """Its snapshots hold its files, and none of its processes.

    ``attach_disk`` and ``attach_network`` are called once, right after construction.
    """

    fidelity = "files"
    #: The digest of the image that it started of; empty without one.
    image = ""
    #: What that runs where nobody says what.
    command: tuple[str, ...] = ()
    #: The name under which forks are offered its layer; empty before the first.
    _offered = ""

    def attach_disk(self, disk: SandboxDisk | None) -> None:
        """Takes ownership. None where the sandbox could not pass its host a descriptor of it."""
        #: Held by a pause, a resume or a snapshot: who has it stand still has it so to the end.
        self._turn = threading.Lock()
        if disk is None:
            why = "this user's processes had too many descriptors on their way as it was made"
            self.lacks = {**self.lacks, "snapshot": why, "fork": why, "branch": why}
            return
        self._disk, self._disk_lock = disk, threading.Lock()
        self._disk_over = self._disk_closed = False
        self._on_end = (*self._on_end, self._give_up_disk)

    def attach_network(self, network: SandboxNetwork | None) -> None:
        """Takes ownership. None where its network is not restricted to rules."""
        if network is not None:
            self._on_end = (*self._on_end, network.close)
        give_abilities(self, network)

    def attach_image(
        self, digest: str, command: tuple[str, ...], release: Callable[[], None]
    ) -> None:
        """Have the image that it started of released once it has ended."""
        self.image, self.command = digest, command
        self._on_end = (*self._on_end, release)

    def pause(self) -> None:
        with self._turn:
            super().pause()

    def resume(self) -> None:
        with self._turn:
            super().resume()

    def snapshot(self, folder: str) -> None:
        """Write its files beneath ``folder``; it stands still meanwhile where a cgroup can have it
        so. Raises SandboxError, and BackendLost once it is killed."""
        with self._turn, _written(), self._still() as still, self._disk_held() as disk:
            with disk.all() as source:
                self._save(folder, source, still=still)
            if self.image:
                kept.write_word(folder, "image", self.image)

    def branch(self, folder: str) -> None:
        """Write beneath ``folder`` what ``restore`` makes forks of, for as long as this one lives.

        Where nothing but its agent runs in it, that is no copy: what is on its disk is shared from
        then on, and both go on with a layer of their own. The caller sees to it that nobody asks
        anything of the agent meanwhile. Raises as ``snapshot``.
        """
        with self._turn, _written():
            alone = self._runs_nothing()
            stands = contextlib.nullcontext(True) if alone else self._still()
            with stands as still, self._disk_held() as disk:
                stacked = alone and self._stack(disk)
                if disk.shared is not None:
                    self._offered = self._offered or shared_layer.offer(disk.shared)
                    kept.write_word(folder, "layer", self._offered)
                if not stacked:
                    with disk.own() as source:
                        self._save(folder, source, still=still)
                if self.image:
                    kept.write_word(folder, "image", self.image)

    def _stack(self, disk: SandboxDisk) -> bool:
        """Return whether what it has is a layer now. Nothing may run in it, which would be left
        with files and working directories of the layer."""
        if not disk.can_stack():
            return False
        try:
            disk.stack()
        except OSError:  # a file is open to be written: a copy is made as it is
            self._check()
            return False
        return True

    def _runs_nothing(self) -> bool:
        """Return whether it is known that no process but its agent is in it."""
        try:
            known = os.path.exists(f"/proc/{self.pid}/task")  # it may be hidden from us (hidepid)
            return known and not process.children(self.pid)
        except OSError:  # no such file in this kernel
            return False

    def _save(self, folder: str, source: saving.SavedDisk, *, still: bool) -> None:
        first = None if self._block is None else self._block.id
        saving.save(folder, source, first, still=still, check=self._check)

    def _check(self) -> None:
        if self._first_killed or self._empty:
            raise BackendLost(f"sandbox {self.id} was killed")

    @contextlib.contextmanager
    def _disk_held(self) -> Iterator[SandboxDisk]:
        """For as long as we need it, whoever ends the sandbox meanwhile."""
        try:
            with self._disk_lock:
                self._check()
                yield self._disk
        finally:
            self._free_disk()

    def _give_up_disk(self) -> None:
        """Whoever ends the sandbox waits for nobody who needs its disk yet: that one frees it."""
        self._disk_over = True
        self._free_disk()

    def _free_disk(self) -> None:
        if self._disk_over and self._disk_lock.acquire(blocking=False):
            try:
                if not self._disk_closed:
                    self._disk_closed = True
                    self._close_disk()
            finally:
                self._disk_lock.release()

    def _close_disk(self) -> None:
        shared_layer.withdraw(self._offered)
        self._disk.close()

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
                self._freeze_or_thaw(paused=False)

    def _pause_if_able(self) -> bool:
        if "pause" in self.lacks:
            return False
        try:
            self._freeze_or_thaw(paused=True)
        except SandboxError:
            self._check()
            return False  # its processes could not be stopped in time
        return True
