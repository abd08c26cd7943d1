"""What this process may do to other users and to mounts: decided here, by capabilities.

A uid alone tells little: root of a container lacks capabilities, and root of a user namespace has
all of them but few ids. Every question of the kind "is this root?" is one of these. Standard
library only.
"""

import os
from functools import cache

from agentd.linux.kernel import KERNEL

#: capabilities(7), by number.
NAMES = {
    0: "CAP_CHOWN",
    1: "CAP_DAC_OVERRIDE",
    3: "CAP_FOWNER",
    5: "CAP_KILL",
    6: "CAP_SETGID",
    7: "CAP_SETUID",
    18: "CAP_SYS_CHROOT",
    21: "CAP_SYS_ADMIN",
    27: "CAP_MKNOD",
    31: "CAP_SETFCAP",
}
CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID = 0, 1, 3, 5, 6, 7
SYS_CHROOT, SYS_ADMIN, MKNOD, SETFCAP = 18, 21, 27, 31
# To give processes and files to another user, to end those processes, and to read, write and
# remove what they made.
_FOR_USERS = (SETUID, SETGID, CHOWN, FOWNER, DAC_OVERRIDE, KILL)


def missing(*capabilities: int) -> list[str]:
    """Returns the names of those that this process does not have in force."""
    held, _ = KERNEL.capget()
    return [NAMES[number] for number in capabilities if not held >> number & 1]


def no_users(start: int, end: int) -> str:
    """Return why processes cannot be given the ids from ``start`` to ``end`` here; empty if they
    can.

    Whoever is not uid 0 counts as an ordinary user, with whatever capabilities: files that only
    root may be trusted with have to be its own.
    """
    if os.geteuid() != 0:
        return "agentd does not run as root"
    if lacking := missing(*_FOR_USERS):
        return f"root here lacks {', '.join(lacking)}"
    for file in ("/proc/self/uid_map", "/proc/self/gid_map"):
        if not _maps(file, start, end):
            return f"root of a user namespace that has no ids from {start} to {end - 1}"
    if _denies_groups():
        return "root of a user namespace that may not set groups"
    return ""


def may_set_groups() -> bool:
    """Return whether supplementary groups can be given up: not in every user namespace."""
    return os.geteuid() == 0 and not _denies_groups() and not missing(SETGID)


@cache  # it cannot be changed once ids are mapped: user_namespaces(7)
def _denies_groups() -> bool:
    try:
        with open("/proc/self/setgroups", encoding="ascii") as file:
            return file.read().strip() == "deny"
    except OSError:
        return False  # user namespaces are not built in


def may_mount() -> bool:
    """Return whether namespaces and mounts can be made without a user namespace, as the machine's
    root."""
    return os.geteuid() == 0 and not missing(SYS_ADMIN)


def maps_itself() -> bool:
    """Return whether this user can be mapped in a user namespace of its own: uid 0 takes
    CAP_SETFCAP for that since Linux 5.12 (verify_root_map() in the kernel)."""
    return os.geteuid() != 0 or not missing(SETFCAP)


def no_jailer() -> str:
    """Return why Firecracker's jailer cannot do its work here; empty if it can."""
    if os.geteuid() != 0:
        return f"uid {os.geteuid()}"
    lacking = missing(SYS_ADMIN, SYS_CHROOT, MKNOD, SETUID, SETGID, CHOWN)
    return f"root without {', '.join(lacking)}" if lacking else ""


def is_machine_root() -> bool:
    """Return whether this is uid 0 of the machine itself, who owns /proc/sys, whatever it lacks."""
    return os.geteuid() == 0 and _maps("/proc/self/uid_map", 0, 1, itself=True)


@cache
def _maps(file: str, start: int, end: int, *, itself: bool = False) -> bool:
    """Return whether all ids of a range are mapped in this user namespace; ``itself``: as
    themselves."""
    try:
        with open(file, encoding="ascii") as text:
            lines = [[int(word) for word in line.split()] for line in text]
    except (OSError, ValueError):
        return True  # no user namespaces in this kernel, or no /proc: whoever needs it will see
    reached = start
    for first, outside, count in sorted(lines):
        if first <= reached < first + count and (not itself or first == outside):
            reached = first + count
    return reached >= end
