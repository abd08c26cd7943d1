"""Version 1: a directory for each controller's own mount (cgroup-v1/*.rst in the kernel's docs)."""

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence

from agentd.linux.cgroup import files
from agentd.linux.cgroup.group import Group
from agentd.linux.cgroup.hierarchy import (
    CPU_PERIOD_USEC,
    LIMITING,
    PARENT,
    GroupLimits,
    Hierarchy,
    cpu_quota,
    not_writable,
)

# cpuacct only counts; freezer only freezes, and a group's directory there is made when it must.
KNOWN = (*LIMITING, "cpuacct", "freezer")
_FREEZE_SECONDS = 5.0
_POLL_SECONDS = 0.001
_SOCKETS = "memory.kmem.tcp.limit_in_bytes"
_LEAST_SOCKET_BYTES = 2 << 20
_WITH_SWAP = "memory.memsw.limit_in_bytes"
_FILES = ("total_inactive_file", "total_active_file")
_NO_LIMIT = 1 << 60
_COUNTERS = (
    ("oom", "memory", "memory.oom_control", "oom_kill"),
    ("pids", "pids", "pids.events", "max"),
)


class V1Hierarchy(Hierarchy):
    """``bases`` maps controllers to the directory of the group that this process is in."""

    version = 1

    def __init__(self, bases: Mapping[str, str]) -> None:
        self._bases = {name: bases[name] for name in KNOWN if name in bases}
        self.controllers = frozenset(LIMITING) & self._bases.keys()

    def blockers(self) -> list[str]:
        words = [not_writable(base) for base in dict.fromkeys(self._bases.values())]
        return [text for text in words if text is not None]

    def _parents(self) -> Sequence[str]:
        return [f"{base}/{PARENT}" for base in dict.fromkeys(self._bases.values())]

    def _directory(self, controller: str, name: str) -> str:
        return f"{self._bases[controller]}/{PARENT}/{name}"

    def _directories(self, name: str, held: frozenset[str]) -> Sequence[str]:
        # memory and pids also count and kill; cpu costs an attach, so only with a quota.
        wanted = {"memory", "pids", "cpuacct"} | held
        found = [self._directory(c, name) for c in self._bases if c in wanted]
        return list(dict.fromkeys(found))  # cpu and cpuacct are often one mount

    def _group(self, name: str, directories: Sequence[str], held: frozenset[str]) -> Group:
        of = {c: self._directory(c, name) for c in self._bases}
        return V1Group(name, directories, held, self._remove_parents, of, self._make)

    def _limit(self, name: str, limits: GroupLimits) -> None:
        memory, pids, cpus = limits
        if memory is not None:
            directory = self._directory("memory", name)
            files.write(directory, "memory.limit_in_bytes", memory)
            # Memory and swap together; absent where the kernel does not account swap.
            if not files.write_if_present(directory, _WITH_SWAP, memory):
                files.write(directory, "memory.swappiness", 0)
            # What its sockets hold is counted apart, and not at all before this is written.
            files.write_if_present(directory, _SOCKETS, socket_bytes(memory))
        if pids is not None:
            files.write(self._directory("pids", name), "pids.max", pids)
        if cpus is not None:
            directory = self._directory("cpu", name)
            files.write(directory, "cpu.cfs_period_us", CPU_PERIOD_USEC)
            try:
                files.write(directory, "cpu.cfs_quota_us", cpu_quota(cpus))
            except OSError as error:
                # More than a group above may have: that one's, which is less, holds for this too.
                if error.errno != errno.EINVAL:
                    raise

    def _make_parent(self, parent: str) -> None:
        try:
            files.make_dir(parent)
        except FileExistsError:
            return


class V1Group(Group):
    # A thread moving itself needs no lock on all threads of the machine; a process does.
    _DOOR = "tasks"

    def __init__(
        self,
        name: str,
        directories: Sequence[str],
        controllers: frozenset[str],
        removed: Callable[[], None],
        of: Mapping[str, str],
        make: Callable[[str], None],
    ) -> None:
        super().__init__(name, directories, controllers, removed)
        self._of = of
        self._make = make

    def where(self) -> dict[str, object]:
        return {"version": 1, "directories": dict(self._of)}

    def sockets_apart(self, memory: int) -> int | None:
        there = os.path.exists(f"{self._of.get('memory')}/{_SOCKETS}")
        return socket_bytes(memory) if there else None

    def counters(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for name, controller, file, field in _COUNTERS:
            if (directory := self._of.get(controller)) is not None:
                number = files.read_field(directory, file, field)
                if number is not None:
                    found[name] = number
        return found

    def usage(self) -> dict[str, int]:
        nanoseconds = self._number("cpuacct", "cpuacct.usage")
        numbers = {
            "memory_bytes": self._number("memory", "memory.usage_in_bytes"),
            "peak_memory_bytes": self._number("memory", "memory.max_usage_in_bytes"),
            "cpu_usec": None if nanoseconds is None else nanoseconds // 1000,
        }
        return {name: value for name, value in numbers.items() if value is not None}

    def limit_memory(self, limit: int) -> None:
        directory = self._of["memory"]
        names = ["memory.limit_in_bytes", _WITH_SWAP]
        if not os.path.exists(f"{directory}/{_WITH_SWAP}"):
            names.pop()
        # The one with swap is never the smaller; the kernel refuses what is below what is held.
        if limit > (self._number("memory", names[0]) or 0):
            names.reverse()
        for name in names:
            files.write(directory, name, limit)

    def memory_room(self) -> int | None:
        rooms = []
        for directory in files.ancestors(self._of["memory"]):
            limit = files.read_int(directory, "memory.limit_in_bytes")
            held = files.read_int(directory, "memory.usage_in_bytes")
            if limit is not None and held is not None and limit < _NO_LIMIT:
                dropped = files.read_sum(directory, "memory.stat", _FILES)
                rooms.append(max(limit - held + dropped, 0))
        return min(rooms, default=None)

    def tasks(self) -> int | None:
        return self._number("pids", "pids.current")

    def without_freezer(self) -> str:
        return "" if "freezer" in self._of else "no freezer controller is mounted"

    def freeze(self) -> None:
        directory = self._of.get("freezer")
        if directory is None:
            raise OSError(errno.EOPNOTSUPP, self.without_freezer(), self.name)
        if directory not in self._directories:
            self._make(directory)
            self._directories += (directory,)
        deadline = time.monotonic() + _FREEZE_SECONDS
        with self._thawed_unless_done():
            self._gather(directory, deadline)
            while not self._is_frozen(directory):
                if time.monotonic() >= deadline:
                    raise OSError(errno.ETIMEDOUT, "processes did not freeze", directory)
                time.sleep(_POLL_SECONDS)

    def _is_frozen(self, directory: str) -> bool:
        """Ask all of them to freeze, each time anew: one that was asked as it was about to wait
        for its vfork(2) waits on, unfrozen, until it is asked again."""
        files.write(directory, "freezer.state", "FROZEN")
        return files.read(directory, "freezer.state").strip() == "FROZEN"

    def thaw(self) -> None:
        directory = self._of.get("freezer")
        if directory in self._directories:
            files.write(directory, "freezer.state", "THAWED")

    def thaw_if_frozen(self) -> None:
        if self._of.get("freezer") in self._directories:
            self.thaw()

    def _start_kill(self) -> None:
        # Without forks one round of signals ends it.
        directory = self._of.get("pids")
        if directory in self._directories:
            files.write_if_present(directory, "pids.max", 0)

    def _gather(self, freezer: str, deadline: float) -> None:
        """Move every member into the freezer; what is forked meanwhile follows, or is met again."""
        while True:
            outside = self.pids() - set(map(int, files.read(freezer, "cgroup.procs").split()))
            if not outside:
                return
            if time.monotonic() >= deadline:
                raise OSError(errno.ETIMEDOUT, "processes fork faster than they freeze", freezer)
            for pid in outside:
                try:
                    files.write(freezer, "cgroup.procs", pid)
                except ProcessLookupError:
                    continue

    def _number(self, controller: str, file: str) -> int | None:
        directory = self._of.get(controller)
        return None if directory is None else files.read_int(directory, file)


def socket_bytes(memory: int) -> int:
    """Return what sockets may hold beside ``memory``: version 1 cannot count both together."""
    return max(memory // 8, _LEAST_SOCKET_BYTES)


def base_of(mount_point: str, mount_root: str, own: str) -> str:
    """Returns the group ``own``'s directory beneath a mount that shows ``mount_root`` of it."""
    relative = os.path.relpath(own, mount_root)
    if relative == "." or relative.startswith(".."):
        # A container sees its own group at the top of the mount.
        return mount_point
    return f"{mount_point}/{relative}"
