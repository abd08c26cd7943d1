"""A running sandbox's disk, seen from the host: its own tmpfs, and a layer that it shares."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from agentd.guest.zygote import stack
from agentd.sandbox.backends.linux.layers import LayerMaker
from agentd.sandbox.backends.linux.saving import SavedDisk
from agentd.sandbox.backends.linux.shared_layer import FileIds, SharedLayer, Taken

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# What has less is copied, in some ten milliseconds: no layer stays behind then, in which no
# directory can be renamed and no file has two names that is written.
_LARGE = Taken(32 << 20, 1000)
# The part of a disk that must be left for the sandbox's own changes.
_LEAST_LEFT = 8


class Coming(NamedTuple):
    """What a layer to come takes: descriptors of the namespace of mounts in which the disk is and,
    where another, of the process that sees it; who makes it, and how the file system below calls
    its ids. ``foreign``: we may not read all that is there."""

    namespaces: tuple[int, ...]
    maker: LayerMaker
    ids: FileIds
    foreign: bool = False


class SandboxDisk:
    """``fd`` is the tmpfs as the sandbox had it before anything ran in it, ``room`` what there may
    be in all, ``shared`` what lies below. ``coming`` is None where there is no layer to come;
    ``held`` keeps mounted what is mounted on the tmpfs. Owns all descriptors. Not thread-safe.
    """

    def __init__(
        self,
        fd: int,
        room: Taken,
        shared: SharedLayer | None = None,
        coming: Coming | None = None,
        held: tuple[int, ...] = (),
    ) -> None:
        self.fd = fd
        self.shared = shared
        self._room = room
        self._coming = coming
        self._held = held if coming is None else coming.namespaces

    def close(self) -> None:
        for fd in (self.fd, *self._held):
            os.close(fd)
        if self.shared is not None:
            self.shared.close()

    @contextlib.contextmanager
    def all(self) -> Iterator[SavedDisk]:
        """All that it has, as the sandbox sees it."""
        if self._is_stacked():
            view, changed, below = f"{stack.NEXT}/{stack.OVER}", stack.NEXT, _taken(self.fd).size
        elif self.shared is not None:
            view, changed, below = stack.MERGED, ".", self.shared.taken.size
        else:
            yield self._saved(self.fd)
            return
        with _opened(changed, self.fd) as own, _opened(view, self.fd) as fd:
            yield SavedDisk(fd, below + _taken(own).size, self._room.size, merged=True)

    @contextlib.contextmanager
    def own(self) -> Iterator[SavedDisk]:
        """What it has beside the layer that it shares."""
        if not self._is_stacked():
            yield self._saved(self.fd)
        elif self.shared is None:
            with self.all() as whole:
                yield whole
        else:
            with _opened(stack.NEXT, self.fd) as fd:
                yield self._saved(fd)

    def can_stack(self) -> bool:
        """Return whether what it has can become a layer, and is worth it: once, and while there is
        room for more."""
        if self.shared is not None or self._coming is None or self._is_stacked():
            return False
        taken = _taken(self.fd)
        left = (
            total - some > total // _LEAST_LEFT
            for total, some in zip(self._room, taken, strict=True)
        )
        large = taken.size > _LARGE.size or taken.files > _LARGE.files
        return (large or self._coming.foreign) and all(left)

    def stack(self) -> None:
        """Make what it has a layer, and put an empty one on top. Nothing but its agent runs.

        Raises OSError (EBUSY where a file is open to be written) and SandboxError, and then nothing
        is shared: all is as it was, or is on top where what was to be ours was lost on its way.
        """
        assert self._coming is not None  # noqa: S101  (``can_stack``)
        maker, ids = self._coming.maker, self._coming.ids
        taken = _taken(self.fd)
        left = Taken(self._room.size - taken.size, self._room.files - taken.files)
        held, lent = maker.stack(self._coming.namespaces, self.fd, left.size, left.files)
        self.shared = SharedLayer(maker, held, ids, taken, lent)

    def _is_stacked(self) -> bool:
        """Return whether the layer to come is on top: nobody can write what is below it. That is
        the kernel's word, since whoever put it there may have been unable to tell us: for want of
        a descriptor, or in time."""
        frozen = os.fstatvfs(self.fd).f_flag & os.ST_RDONLY
        return self._coming is not None and bool(frozen)

    def _saved(self, fd: int) -> SavedDisk:
        return SavedDisk(fd, _taken(fd).size, self._room.size)


def _taken(fd: int) -> Taken:
    found = os.fstatvfs(fd)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    return Taken(used, found.f_files - found.f_ffree)


@contextlib.contextmanager
def _opened(path: str, above: int) -> Iterator[int]:
    fd = os.open(path, _FOLDER, dir_fd=above)
    try:
        yield fd
    finally:
        os.close(fd)
