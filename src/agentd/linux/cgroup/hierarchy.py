"""Where groups are made: in a directory ``agentd`` beneath the group that bounds this process."""

import contextlib
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from agentd.linux.cgroup import files
from agentd.linux.cgroup.group import Group

PARENT = "agentd"
#: The controllers that hold a limit.
LIMITING = ("memory", "pids", "cpu")
# Period of the CPU quota, and the least quota that the kernel takes, in microseconds.
CPU_PERIOD_USEC = 100_000
_CPU_QUOTA_MIN_USEC = 1_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Another process may remove the empty parent between our two calls.
_PARENT_ATTEMPTS = 100
# Between threads no parent goes while a group is being made; between processes attempts must do.
_parents_lock = threading.RLock()


class GroupLimits(NamedTuple):
    """Of the controllers LIMITING, in their order; None where one holds none."""

    memory: int | None
    pids: int | None
    cpus: float | None


class Hierarchy(ABC):
    """``controllers`` are the ones usable here, of memory, pids and cpu."""

    version: int
    controllers: frozenset[str]

    @abstractmethod
    def blockers(self) -> list[str]:
        """Return why no group can be made here, each with its fix; [] when it can."""

    def create(
        self,
        name: str,
        memory: int | None = None,
        pids: int | None = None,
        cpus: float | None = None,
    ) -> Group:
        """Makes a group with limits in bytes (swap included), tasks and cores; None sets no limit.

        A limit whose controller is not here is left out of ``Group.controllers``. Raises OSError,
        FileExistsError where the name is taken; leaves nothing behind then.
        """
        limits = GroupLimits(memory, pids, cpus)
        for controller, value in zip(LIMITING, limits, strict=True):
            if value is not None and value <= 0:
                raise ValueError(f"{controller} limit {value} of group {name} is not above 0")
        usable = self.controllers
        limits = GroupLimits(
            memory if "memory" in usable else None,
            pids if "pids" in usable else None,
            cpus if "cpu" in usable else None,
        )
        with _parents_lock:
            return self._create(name, limits)

    def _create(self, name: str, limits: GroupLimits) -> Group:
        made: list[str] = []
        held = frozenset(c for c, limit in zip(LIMITING, limits, strict=True) if limit is not None)
        try:
            for directory in self._directories(check_name(name), held):
                self._make(directory)
                made.append(directory)
            group = self._group(name, made, held)
            self._limit(name, limits)
        except BaseException:
            for directory in reversed(made):
                with contextlib.suppress(OSError):
                    files.remove_dir(directory)
            self._remove_parents()
            raise
        return group

    def stale(self, prefix: str) -> list[str]:
        """Returns the names of groups here that start with ``prefix``, whoever made them."""
        return sorted(
            {
                name
                for parent in self._parents()
                for name in files.subdirectories(parent)
                if name.startswith(prefix) and _NAME.fullmatch(name)
            }
        )

    def reap(self, name: str) -> None:
        """Kills and removes a group by name; does nothing when it is gone. Raises OSError."""
        check_name(name)
        directories = [f"{parent}/{name}" for parent in self._parents()]
        self._group(name, [d for d in directories if os.path.isdir(d)], frozenset()).remove()

    @abstractmethod
    def _parents(self) -> Sequence[str]:
        """The ``agentd`` directories."""

    @abstractmethod
    def _directories(self, name: str, held: frozenset[str]) -> Sequence[str]:
        """The directories that make up a group."""

    @abstractmethod
    def _group(self, name: str, directories: Sequence[str], held: frozenset[str]) -> Group: ...

    @abstractmethod
    def _limit(self, name: str, limits: GroupLimits) -> None: ...

    @abstractmethod
    def _make_parent(self, parent: str) -> None:
        """Make one ``agentd`` directory ready; raises FileNotFoundError when it went meanwhile."""

    def _make(self, directory: str) -> None:
        for _ in range(_PARENT_ATTEMPTS):
            try:
                files.make_dir(directory)
            except FileNotFoundError:
                with contextlib.suppress(FileNotFoundError):
                    self._make_parent(os.path.dirname(directory))
            else:
                return
        files.make_dir(directory)

    def _remove_parents(self) -> None:
        """An empty parent goes; one that is in use says EBUSY."""
        with _parents_lock:
            for parent in self._parents():
                with contextlib.suppress(OSError):
                    files.remove_dir(parent)


def cpu_quota(cpus: float) -> int:
    """Returns microseconds of CPU in a period."""
    return max(int(cpus * CPU_PERIOD_USEC), _CPU_QUOTA_MIN_USEC)


def not_writable(directory: str) -> str | None:
    """Returns words for a directory where this process may not make groups."""
    if os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        return None
    if os.geteuid() == 0:
        return (
            f"{directory} is read-only, as in most containers: only the container as a whole can "
            "be bounded (docker run --memory, --cpus)"
        )
    return (
        f"{directory} is not writable by uid {os.geteuid()}: run as root, or have systemd "
        "delegate a cgroup (Delegate=yes)"
    )


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"cgroup name {name!r} is not 1 to 128 of A-Z a-z 0-9 . _ -")
    return name
