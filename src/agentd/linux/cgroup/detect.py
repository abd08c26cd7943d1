"""Find the mounted hierarchy that can limit, and this process' place in it."""

import os
from typing import NamedTuple

from agentd.linux.cgroup import v1, v2
from agentd.linux.cgroup.hierarchy import Hierarchy
from agentd.linux.mounts import unescaped


class _Mount(NamedTuple):
    root: str
    point: str
    kind: str
    options: frozenset[str]


def detect(
    mountinfo_text: str | None = None, membership_text: str | None = None
) -> Hierarchy | None:
    """Finds the v2 hierarchy if it has a controller that limits, else v1; None where neither has.

    The texts are those of /proc/self/mountinfo and /proc/self/cgroup (cgroups(7)).
    """
    mounts = _cgroup_mounts(mountinfo_text or _read("/proc/self/mountinfo"))
    own = _membership(membership_text or _read("/proc/self/cgroup"))
    # Hybrid set-ups mount an empty v2 next to v1: one without controllers is passed over.
    for mount in mounts:
        if mount.kind == "cgroup2":
            unified = v2.V2Hierarchy(
                mount.point, os.path.relpath(_shown(mount, own.get("", "/")), "/")
            )
            if unified.controllers:
                return unified
    bases = {
        controller: v1.base_of(mount.point, mount.root, own[controller])
        for mount in mounts
        if mount.kind == "cgroup"
        for controller in v1.KNOWN
        if controller in mount.options and controller in own
    }
    legacy = v1.V1Hierarchy(bases)
    return legacy if legacy.controllers else None


def _shown(mount: _Mount, own: str) -> str:
    """The path beneath the mount of the group ``own``; "/" where the mount does not show it."""
    return v1.base_of("", mount.root, own) or "/"


def _cgroup_mounts(text: str) -> list[_Mount]:
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _, options) = left.split(), right.split(maxsplit=2)
        if kind in ("cgroup", "cgroup2"):
            root, point = unescaped(fields[3]), unescaped(fields[4])
            mounts.append(_Mount(root, point, kind, frozenset(options.split(","))))
    return mounts


def _membership(text: str) -> dict[str, str]:
    """Group paths by controller; v2's by ""."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
