"""What a sandbox had when it was forked, shared by it and its forks: nobody can write it any more.

It is held by a mount namespace of its own, of which every sandbox that has it keeps a descriptor:
with the last of them the kernel frees it, however those who held it have ended.
"""

import os
import threading
from collections.abc import Sequence
from typing import NamedTuple

from agentd.linux import abi, idmap
from agentd.linux.kernel import KERNEL
from agentd.linux.rights import close_all
from agentd.model.errors import SandboxError
from agentd.model.system import os_errors_as
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux import kept
from agentd.sandbox.backends.linux.layers import LayerMaker


class FileIds(NamedTuple):
    """How the file system that has a sandbox's files calls its ids: the first, and how many."""

    first: int
    many: int


class Taken(NamedTuple):
    """Bytes and files on a file system."""

    size: int
    files: int


class SharedLayer:
    """One sandbox's hold on it, and its to close. ``taken`` is what it has."""

    def __init__(
        self,
        maker: LayerMaker,
        held: tuple[int, int],
        ids: FileIds,
        taken: Taken,
        lent: Sequence[int] = (),
        first: "SharedLayer | None" = None,
    ) -> None:
        """``held`` is a mount namespace and a tree in it. ``lent`` are detached mounts for whoever
        wants one next, owned as it is. Duplicates take theirs from the ``first``."""
        self.taken = taken
        self._maker, self._held, self._ids, self._lent = maker, held, ids, list(lent)
        self._first = first or self

    def duplicate(self) -> "SharedLayer":
        """Raises OSError."""
        namespace = os.dup(self._held[0])
        try:
            tree = os.dup(self._held[1])
        except OSError:
            os.close(namespace)
            raise
        held = namespace, tree
        return SharedLayer(self._maker, held, self._ids, self.taken, first=self._first)

    def lend(self, block: Block | None) -> int:
        """Makes a detached mount, which belongs to the ids of a sandbox of ``block``; the caller's
        to close. Raises OSError, SandboxError."""
        fd = self._first._take()
        if fd is None:
            fd, *more = self._maker.lend(self._held)
            self._first._keep(more)
        try:
            self._give(fd, block)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        """Gives it up; idempotent."""
        with _lock:
            fds = (*self._held, *self._lent)
            self._held, self._lent = (-1, -1), []
        close_all(fd for fd in fds if fd >= 0)

    def _take(self) -> int | None:
        with _lock:
            return self._lent.pop() if self._lent else None

    def _keep(self, lent: list[int]) -> None:
        """For the next forks, unless it has been given up or has some."""
        with _lock:
            if self._held[0] >= 0 and not self._lent:
                self._lent, lent = lent, []
        close_all(lent)

    def _give(self, fd: int, block: Block | None) -> None:
        if block is None:  # it is the caller, as whoever made the files is
            return
        line = f"{self._ids.first} {block.id} {self._ids.many}"
        userns = idmap.namespace(line, line)
        try:
            set_ = abi.MOUNT_ATTR_RDONLY | abi.MOUNT_ATTR_IDMAP
            KERNEL.mount_setattr(fd, "", abi.AT_EMPTY_PATH, set_=set_, userns_fd=userns)
        finally:
            os.close(userns)


# By a name that nobody can guess, which a fork's folder has: those of sandboxes that live.
_offered: dict[str, SharedLayer] = {}
_lock = threading.Lock()  # of this, and of what each has lent


def offer(layer: SharedLayer) -> str:
    """Return a name by which forks have it from now on; it stays the caller's."""
    name = os.urandom(16).hex()
    with _lock:
        _offered[name] = layer
    return name


def withdraw(name: str) -> None:
    with _lock:
        _offered.pop(name, None)


def of_fork(folder: str) -> SharedLayer | None:
    """Opens the one that the folder of a fork names, the caller's to close; None of a snapshot.

    Raises SandboxError.
    """
    name = kept.read_word(folder, "layer")
    if not name:
        return None
    with _lock:
        if name in _offered:
            with os_errors_as(SandboxError, "no fork can be made"):
                return _offered[name].duplicate()
    raise SandboxError(
        "the sandbox that is forked has ended",
        remediation="fork one that lives, or restore from a snapshot",
    )
