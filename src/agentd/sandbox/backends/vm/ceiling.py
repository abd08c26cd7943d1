"""The ceiling over a machine's memory while its snapshot is written.

What a monitor writes counts as its group's memory until it is on a disk, and for as long as it
exists where there is none: on tmpfs, and on an overlay over one, as containers and live systems
have it. Under a ceiling that holds a machine and no more, the kernel would end the machine.
"""

import contextlib
import os
from collections.abc import Iterator

from agentd.linux import mounts
from agentd.linux.cgroup import Group
from agentd.model.errors import SandboxError
from agentd.model.units import format_size
from agentd.sandbox.backends.vm import states

_IN_MEMORY = ("tmpfs", "ramfs")
_BESIDE = 64 << 20  # page tables, the state's own file, and what the monitor takes to write both


class Ceiling:
    """Raises and lowers the memory limit of a machine's group; None has none. Not thread-safe."""

    def __init__(self, group: Group | None, limit: int) -> None:
        """``limit`` is the one that the group was made with, in bytes."""
        self._group = group if group is not None and "memory" in group.controllers else None
        self._limit = limit
        self._kept = 0  # bytes of files in memory that count for the group

    def check_room(self, folder: str, size: int) -> None:
        """Raises SandboxError where ``size`` bytes in ``folder`` would be memory that is not there:
        then the kernel would end something for it."""
        if not in_memory(folder):
            return
        rooms = [_available(), None if self._group is None else self._group.memory_room()]
        room = min((room for room in rooms if room is not None), default=None)
        if room is not None and room < size + _BESIDE:
            raise SandboxError(
                f"there is no memory for a snapshot in {folder}",
                cause=f"it lies in memory, of which {format_size(room)} are left, "
                f"and takes up to {format_size(size + _BESIDE)}",
                remediation="free memory, or have that folder on a disk",
            )

    @contextlib.contextmanager
    def raised(self, size: int) -> Iterator[None]:
        """Raise the ceiling by ``size`` bytes, for as long as a file of that size is written."""
        if self._group is None:
            yield
            return
        try:
            self._group.limit_memory(self._limit + self._kept + size + _BESIDE)
        except OSError as error:
            raise SandboxError(
                "no snapshot is taken: it could end the machine",
                cause=f"its ceiling of memory cannot be raised: {error}",
            ) from error
        try:
            yield
        finally:
            # What does not fit under the old one stays allowed: it is tried again next time.
            with contextlib.suppress(OSError):
                self._group.limit_memory(self._limit + self._kept)

    def keeps(self, fd: int) -> None:
        """Notes a file that the monitor wrote, which stays: in memory it counts for the group."""
        if in_memory(f"/proc/self/fd/{fd}"):
            self._kept += states.allocated(fd)


def in_memory(path: str) -> bool:
    """Return whether what is written there takes memory for as long as it is there."""
    kind, options = mounts.kind_of(path)
    if kind != "overlay":
        return kind in _IN_MEMORY
    upper = next((word[9:] for word in options.split(",") if word.startswith("upperdir=")), "")
    # Of a container's own root nobody inside can tell.
    return in_memory(upper) if os.path.isdir(upper) and upper != path else True


def _available() -> int | None:
    """Bytes, by /proc/meminfo."""
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) << 10
    return None
