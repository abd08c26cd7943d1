"""Version 2: one tree (cgroup-v2.rst in the kernel's docs)."""

import contextlib
import errno
import os
import time
from collections.abc import Sequence

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

# A group with processes cannot share its controllers out: they move into this child first.
LEAF = "agentd-host"
_MOVE_ROUNDS = 20
_FREEZE_SECONDS = 5.0
_POLL_SECONDS = 0.001
_NOT_DELEGATED = (
    "this process' cgroup is not delegated to it: start agentd with "
    "systemd-run --user --scope -p Delegate=yes, or set Delegate=yes in its unit"
)


class V2Hierarchy(Hierarchy):
    """``base`` is where ``agentd`` goes: this process' own group, if it is ours to arrange.

    It is when the top of a container's view, or delegated by systemd. Root of a whole machine
    uses the top of the tree instead, as nothing else is its own.
    """

    version = 2

    def __init__(self, mount_point: str, own: str) -> None:
        directory = os.path.normpath(f"{mount_point}/{own}")
        if os.path.basename(directory) == LEAF:
            directory = os.path.dirname(directory)
        self._arranges = _is_ours(directory, mount_point)
        self._base = directory if self._arranges else mount_point
        self.controllers = frozenset(LIMITING) & _controllers(self._base)

    def blockers(self) -> list[str]:
        if not self._arranges and not _is_real_root(self._base):
            return [_NOT_DELEGATED]
        text = not_writable(self._base)
        return [] if text is None else [text]

    def _parents(self) -> Sequence[str]:
        return [f"{self._base}/{PARENT}"]

    def _directories(self, name: str, held: frozenset[str]) -> Sequence[str]:
        return [f"{self._base}/{PARENT}/{name}"]

    def _group(self, name: str, directories: Sequence[str], held: frozenset[str]) -> Group:
        return V2Group(name, directories, held, self._remove_parents)

    def _limit(self, name: str, limits: GroupLimits) -> None:
        memory, pids, cpus = limits
        parent = f"{self._base}/{PARENT}"
        directory = f"{parent}/{name}"
        # Another may have made the parent, and not have come to sharing yet.
        self._share(parent)
        if memory is not None:
            files.write(directory, "memory.max", memory)
            # Absent where the kernel does not account swap.
            files.write_if_present(directory, "memory.swap.max", 0)
        if pids is not None:
            files.write(directory, "pids.max", pids)
        if cpus is not None:
            files.write(directory, "cpu.max", f"{cpu_quota(cpus)} {CPU_PERIOD_USEC}")

    def _make_parent(self, parent: str) -> None:
        if self._arranges:
            self._move_processes()
        self._share(self._base)
        with contextlib.suppress(FileExistsError):
            files.make_dir(parent)
        self._share(parent)

    def _share(self, directory: str) -> None:
        """Let the groups below ``directory`` have the controllers; idempotent."""
        share = " ".join(f"+{controller}" for controller in sorted(self.controllers))
        files.write(directory, "cgroup.subtree_control", share)

    def _move_processes(self) -> None:
        """Into a leaf of their own. Their limits stay: the leaf has none."""
        leaf = f"{self._base}/{LEAF}"
        for _ in range(_MOVE_ROUNDS):
            present = [pid for pid in files.read(self._base, "cgroup.procs").split() if pid != "0"]
            if not present:
                return
            with contextlib.suppress(FileExistsError):
                files.make_dir(leaf)
            for pid in present:
                with contextlib.suppress(ProcessLookupError):
                    files.write(leaf, "cgroup.procs", pid)


class V2Group(Group):
    def where(self) -> dict[str, object]:
        return {"version": 2, "directories": {"unified": self._directories[0]}}

    def sockets_apart(self, memory: int) -> int | None:
        return 0

    def counters(self) -> dict[str, int]:
        return self._fields(oom=("memory.events", "oom_kill"), pids=("pids.events", "max"))

    def usage(self) -> dict[str, int]:
        numbers = {
            "memory_bytes": files.read_int(self._directories[0], "memory.current"),
            "peak_memory_bytes": files.read_int(self._directories[0], "memory.peak"),  # Linux 5.19
        }
        known = {name: value for name, value in numbers.items() if value is not None}
        return known | self._fields(cpu_usec=("cpu.stat", "usage_usec"))

    def limit_memory(self, limit: int) -> None:
        directory = self._directories[0]
        held = _held(directory)
        if held is not None and held > limit:
            raise OSError(errno.EBUSY, f"{held} bytes are held, over {limit}", directory)
        files.write(directory, "memory.max", limit)

    def memory_room(self) -> int | None:
        rooms = []
        for directory in files.ancestors(self._directories[0]):
            limit, held = files.read_int(directory, "memory.max"), _held(directory)
            if limit is not None and held is not None:
                rooms.append(max(limit - held, 0))
        return min(rooms, default=None)

    def tasks(self) -> int | None:
        return files.read_int(self._directories[0], "pids.current")

    def without_freezer(self) -> str:
        there = os.path.exists(f"{self._directories[0]}/cgroup.freeze")
        return "" if there else "the kernel has no freezer of cgroups: boot Linux 5.2 or newer"

    def freeze(self) -> None:
        """Writes, which only starts it: the kernel says when the last process has stopped."""
        directory = self._directories[0]
        deadline = time.monotonic() + _FREEZE_SECONDS
        with self._thawed_unless_done():
            files.write(directory, "cgroup.freeze", 1)
            while files.read_field(directory, "cgroup.events", "frozen") == 0:
                if time.monotonic() >= deadline:
                    raise OSError(errno.ETIMEDOUT, "processes did not freeze", directory)
                time.sleep(_POLL_SECONDS)

    def thaw(self) -> None:
        files.write(self._directories[0], "cgroup.freeze", 0)

    def thaw_if_frozen(self) -> None:
        """Does nothing: a v2 freezer lets SIGKILL through."""

    def _start_kill(self) -> None:
        for directory in self._directories:
            # Linux 5.14, all at once and nested groups too; before that, members one by one.
            if not files.write_if_present(directory, "cgroup.kill", 1):
                files.write_if_present(directory, "pids.max", 0)

    def _fields(self, **wanted: tuple[str, str]) -> dict[str, int]:
        found = {
            name: files.read_field(self._directories[0], file, field)
            for name, (file, field) in wanted.items()
        }
        return {name: value for name, value in found.items() if value is not None}


def _held(directory: str) -> int | None:
    """Bytes that cannot be had back by dropping what the disk has, too."""
    current = files.read_int(directory, "memory.current")
    dropped = files.read_sum(directory, "memory.stat", ("inactive_file", "active_file"))
    return None if current is None else max(current - dropped, 0)


def _controllers(directory: str) -> frozenset[str]:
    return frozenset(files.read(directory, "cgroup.controllers").split())


def _is_real_root(directory: str) -> bool:
    """Only the machine's own root group has no type."""
    return not os.path.exists(f"{directory}/cgroup.type")


def _is_ours(directory: str, mount_point: str) -> bool:
    if not os.path.isdir(directory) or _is_real_root(directory):
        return False
    if directory == mount_point or os.stat(directory).st_uid == os.geteuid() != 0:
        return True
    return any(_xattr(directory, name) == b"1" for name in ("user.delegate", "trusted.delegate"))


def _xattr(path: str, name: str) -> bytes:
    """systemd marks what it delegates; trusted ones can be read by root only."""
    try:
        return os.getxattr(path, name)
    except OSError:
        return b""
