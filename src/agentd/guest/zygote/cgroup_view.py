"""A sandbox's own control group, to be read at /sys/fs/cgroup, by which JVMs and others size
themselves.

Version 2: its group. Version 1: its group in each hierarchy in which it has one. Of the others that
a JVM must find to believe in any, there are files that say "no limit", and the mount of the
hierarchy, which shows the host's groups, is covered by those. Standard library only.
"""

import os
from collections.abc import Collection
from contextlib import suppress
from functools import cache

from agentd.linux import abi
from agentd.linux.kernel import Kernel

PLACE = "/sys/fs/cgroup"
#: What the host says of a group of version 2, in place of controllers.
UNIFIED = "unified"
_FLAGS = abi.MS_RDONLY | abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC
_CONTROLLERS = ("memory", "cpu", "cpuacct", "cpuset", "pids")
STATIC = "/.agentd/cgroup"


def make(stage: str) -> None:
    """Makes the places for it in the zygote's root, below ``stage``."""
    os.makedirs(stage + PLACE, 0o755, exist_ok=True)
    for name in hierarchies():
        os.mkdir(f"{stage}{PLACE}/{name}", 0o755)
        os.makedirs(f"{stage}{STATIC}/{name}", 0o755)
        for file, text in _unlimited(name).items():
            with open(f"{stage}{STATIC}/{name}/{file}", "x", encoding="utf-8") as made:
                made.write(f"{text}\n")


@cache
def hierarchies() -> dict[str, str]:
    """Options by which the hierarchy of each controller of version 1 is mounted: "cpu,cpuacct"."""
    found = {}
    with suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            controllers = line.split(":", 2)[1]
            for name in controllers.split(","):
                if name in _CONTROLLERS:
                    found[name] = controllers
    return found


def mount(held: Collection[str], kernel: Kernel, below: str = "") -> None:
    """``held`` names the controllers in whose hierarchies the group is this sandbox's own; its root
    is at ``below``.

    Only once the group is the root of the cgroup namespace. Where it cannot be had, there is none.
    """
    with suppress(OSError):
        if UNIFIED in held:
            kernel.mount("cgroup2", below + PLACE, "cgroup2", _FLAGS, None)
        elif held:
            _mount_each(held, kernel, below)


def _mount_each(held: Collection[str], kernel: Kernel, below: str) -> None:
    for name, controllers in hierarchies().items():
        target = f"{below}{PLACE}/{name}"
        kernel.mount("cgroup", target, "cgroup", _FLAGS, controllers)
        if name not in held:
            try:
                kernel.mount(f"{below}{STATIC}/{name}", target, None, abi.MS_BIND)
            except OSError:
                kernel.umount(target, abi.MNT_DETACH)
                raise


def _unlimited(controller: str) -> dict[str, str]:
    cores = os.sysconf("SC_NPROCESSORS_ONLN")
    online = f"0-{cores - 1}" if cores > 1 else "0"
    most = str((1 << 63) - os.sysconf("SC_PAGE_SIZE"))
    return {
        "cpu": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000", "cpu.shares": "1024"},
        "cpuacct": {"cpuacct.usage": "0"},
        "cpuset": {
            "cpuset.cpus": online,
            "cpuset.effective_cpus": online,
            "cpuset.mems": "0",
            "cpuset.effective_mems": "0",
        },
        "memory": {
            "memory.limit_in_bytes": most,
            "memory.soft_limit_in_bytes": most,
            "memory.use_hierarchy": "1",
        },
        "pids": {"pids.max": "max"},
    }[controller]
