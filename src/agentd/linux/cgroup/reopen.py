"""A group that another process made and will remove, for reading only."""

from collections.abc import Mapping
from typing import Protocol

from agentd.linux.cgroup.v1 import V1Group
from agentd.linux.cgroup.v2 import V2Group


class CountedGroup(Protocol):
    """Reads the counters of a ``Group``, and cannot end it."""

    def counters(self) -> dict[str, int]: ...

    def usage(self) -> dict[str, int]: ...

    def tasks(self) -> int | None: ...


def reopen(where: Mapping[str, object]) -> CountedGroup:
    """Reopens by ``Group.where()``. Counts are missing once the group is gone. Raises
    ValueError."""
    directories = where.get("directories")
    if not isinstance(directories, Mapping) or where.get("version") not in (1, 2):
        raise ValueError(f"{where!r} is no place of a group")
    of = {str(controller): str(path) for controller, path in directories.items()}
    if where["version"] == 2:
        return V2Group("", [of["unified"]], frozenset(), _nothing)
    return V1Group("", (), frozenset(), _nothing, of, _refuse)


def _nothing() -> None:
    """The group is not ours to remove."""


def _refuse(directory: str) -> None:
    raise PermissionError(f"{directory} is not ours to make")
