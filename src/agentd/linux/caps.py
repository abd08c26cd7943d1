"""Capabilities and securebits: privileges are given up for good."""

import errno
from collections.abc import Container
from functools import cache

from agentd.linux import abi
from agentd.linux.kernel import KERNEL, Kernel

# capabilities(7): uid 0 is no longer special (NOROOT, NO_SETUID_FIXUP), capabilities are not kept
# over a change of uid (KEEP_CAPS stays off), none can be made ambient; each with its lock bit.
_NOROOT = 0x01 | 0x02
_NO_SETUID_FIXUP = 0x04 | 0x08
_KEEP_CAPS_LOCKED = 0x20
_NO_CAP_AMBIENT_RAISE = 0x40 | 0x80
SECUREBITS_LOCKED = _NOROOT | _NO_SETUID_FIXUP | _KEEP_CAPS_LOCKED | _NO_CAP_AMBIENT_RAISE

# Root of a sandbox, in the sandbox's own user namespace (capabilities(7)). CAP_NET_ADMIN would undo
# its network, CAP_SYS_PTRACE reach the agent, CAP_SYS_RESOURCE lift its limits.
OF_ROOT = {
    0: "CAP_CHOWN",
    1: "CAP_DAC_OVERRIDE",
    3: "CAP_FOWNER",
    4: "CAP_FSETID",
    5: "CAP_KILL",
    6: "CAP_SETGID",
    7: "CAP_SETUID",
    8: "CAP_SETPCAP",
    10: "CAP_NET_BIND_SERVICE",
    18: "CAP_SYS_CHROOT",
    31: "CAP_SETFCAP",
}

_SETFCAP = 31

# Capability numbers fit the 64 bits of /proc/PID/status.
_CAP_LIMIT = 64


def drop_all(kernel: Kernel = KERNEL) -> None:
    """Drop every capability of the calling thread and lock the securebits.

    Order matters: the securebits need CAP_SETPCAP, so they go first; a caller that has it not
    (EPERM) has nothing that they could bring back once no_new_privs is set. A capability that was
    dropped leaves the ambient set by itself; clearing it too covers the caller without privilege.
    """
    lock_securebits(kernel)
    kernel.prctl(abi.PR_CAP_AMBIENT, abi.PR_CAP_AMBIENT_CLEAR_ALL)
    kernel.capset(0)


def of_root(*, rw: bool) -> dict[int, str]:
    """Returns ``OF_ROOT``, for ``rw`` (a folder of the host's, read-write) without CAP_SETFCAP.

    Behind an idmapped mount what is root's inside is root's on the host, and so are the file
    capabilities that it writes: everyone there could run them.
    """
    return {number: name for number, name in OF_ROOT.items() if not (rw and number == _SETFCAP)}


def keep_roots(kernel: Kernel = KERNEL, *, rw: bool) -> None:
    """Drop every capability but ``of_root``, and for good: from the bounding set, too.

    What is executed as root has them then, and what becomes another user loses them. The
    securebits stay as they are: they take privilege away, and root may want that.
    """
    keep = of_root(rw=rw)
    drop_bounding(kernel, keep=keep)
    kernel.prctl(abi.PR_CAP_AMBIENT, abi.PR_CAP_AMBIENT_CLEAR_ALL)
    kernel.capset(sum(1 << number for number in keep))


def lock_securebits(kernel: Kernel = KERNEL) -> bool:
    """Set and lock the securebits; False where the caller lacks CAP_SETPCAP."""
    try:
        kernel.prctl(abi.PR_SET_SECUREBITS, SECUREBITS_LOCKED)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        return False
    return True


def drop_bounding(kernel: Kernel = KERNEL, keep: Container[int] = ()) -> None:
    """Empty the bounding set but for ``keep``, so that no exec gains another. Raises OSError
    (EPERM).

    Before ``drop_all`` and before a change of user: it needs CAP_SETPCAP.
    """
    for number in range(last_capability() + 1):
        if number not in keep:
            kernel.prctl(abi.PR_CAPBSET_DROP, number)


def drop_bounding_if_allowed(kernel: Kernel = KERNEL) -> bool:
    """Empty the bounding set; False where the caller lacks CAP_SETPCAP."""
    try:
        drop_bounding(kernel)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        return False
    return True


@cache
def last_capability() -> int:
    """Returns the highest number that this kernel knows; it says so by EINVAL for the next one."""
    for number in range(_CAP_LIMIT):
        try:
            KERNEL.prctl(abi.PR_CAPBSET_READ, number)
        except OSError as error:
            if error.errno == errno.EINVAL and number:
                return number - 1
            raise
    return _CAP_LIMIT - 1
