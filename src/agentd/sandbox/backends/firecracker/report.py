"""What this wall says of itself: the controls in force, and what of the host weakens it."""

import os
from collections.abc import Collection

from agentd.linux import probe
from agentd.linux.cgroup import Group
from agentd.model.enforcement import Control
from agentd.model.units import format_size
from agentd.sandbox.backends.firecracker.plan import FirecrackerPlan
from agentd.sandbox.backends.firecracker.version import Version
from agentd.sandbox.backends.vm import network
from agentd.sandbox.backends.vm.report import of_guest

_MONITOR = {
    "user": "a user of this machine's own",
    "capabilities": "none in effect",
    "seccomp": "firecracker's own filters, one for each kind of thread",
    "root": "a root of its own, with nothing but this machine's files",
    "pid_namespace": "it sees no process but itself",
}
_UNSEEN = "the kernel does not say so of the monitor"
_SECCOMP_FILTER = "2"  # SECCOMP_MODE_FILTER, proc_pid_status(5)
# docs/prod-host-setup.md of github.com/firecracker-microvm/firecracker
_SWITCHES = (
    ("/sys/devices/system/cpu/smt/active", "SMT is on: sibling threads leak to each other"),
    ("/sys/kernel/mm/ksm/run", "KSM merges pages of different machines"),
)


def observe(pid: int, uid: int) -> frozenset[str]:
    """Return what the kernel says of the monitor: it was the jailer's to do, and is not taken on
    trust.

    Of ``user``, ``capabilities``, ``seccomp``, ``root`` and ``pid_namespace`` those that hold.
    """
    try:
        threads = _threads(pid)
        held = {
            "user": all(thread["Uid"].split() == [str(uid)] * 4 for thread in threads),
            "capabilities": all(int(thread["CapEff"], 16) == 0 for thread in threads),
            "seccomp": all(thread.get("Seccomp") == _SECCOMP_FILTER for thread in threads),
            "root": not os.path.samefile(f"/proc/{pid}/root", "/"),
            "pid_namespace": not os.path.samefile(f"/proc/{pid}/ns/pid", "/proc/self/ns/pid"),
        }
    except (OSError, KeyError, ValueError):  # it has ended
        return frozenset()
    return frozenset(name for name, holds in held.items() if holds)


def enforcement(
    plan: FirecrackerPlan,
    version: Version,
    monitor: Collection[str],
    setup: Collection[str],
    group: Group | None,
    detail: str,
) -> dict[str, Control]:
    """``monitor`` is what ``observe`` saw, ``setup`` the controls that hold in the guest;
    ``detail`` says why there is no group.
    """
    table = {
        "virtual_machine": _held(f"accel=kvm, firecracker {version}; a kernel of its own"),
        "guest_memory": _held(format_size(plan.memory)),
        "guest_cpus": _held(f"{plan.vcpus}"),
        "network": network.control(plan.spec),
    }
    for name, how in _MONITOR.items():
        held = name in monitor
        table[f"monitor_{name}"] = Control("default", held, how if held else _UNSEEN)
    table |= of_guest(plan.spec, plan.limits, setup)
    ceiling = group is not None and "memory" in group.controllers
    how = "cgroup controller memory" if ceiling else detail or "no memory controller"
    table["host_memory"] = Control("default", ceiling, how)
    return table


def host_notes() -> list[str]:
    """Return what a production host has otherwise. Nothing is changed by asking."""
    notes = [words for path, words in _SWITCHES if (probe.read_int(path) or 0) > 0]
    if _has_swap():
        notes.append("swap is on: a guest's memory may reach the disk")
    if probe.cgroup_version() == 1:
        notes.append("cgroup v1: the jailer is not told of the group, and restoring is slow")
    return notes


def _threads(pid: int) -> list[dict[str, str]]:
    """Raises OSError where there is none left."""
    found = []
    for name in os.listdir(f"/proc/{pid}/task"):
        try:
            found.append(_status(f"/proc/{pid}/task/{name}"))
        except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            continue
    if not found:
        raise ProcessLookupError
    return found


def _status(folder: str) -> dict[str, str]:
    with open(f"{folder}/status", encoding="ascii", errors="replace") as file:
        pairs = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in pairs}


def _has_swap() -> bool:
    if not os.path.exists("/proc/swaps"):
        return False
    with open("/proc/swaps", encoding="ascii", errors="replace") as file:
        return len(file.readlines()) > 1


def _held(detail: str) -> Control:
    return Control("default", True, detail)
