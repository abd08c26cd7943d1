"""The agent as PID 1 of a gVisor sandbox: what its kernel has of the steps of ``contained``.

gVisor's kernel (the sentry) has no Landlock, no securebits and no ambient set, and hands out no
listener of a seccomp filter: the sentry itself, a process without a privilege behind a filter of
its own, is what stands between a command and the machine.
"""

import resource
from collections.abc import Callable

from agentd.guest import agent
from agentd.guest.zygote import served
from agentd.guest.zygote.served import Request
from agentd.linux import abi, caps, process
from agentd.linux.kernel import KERNEL


def main() -> None:
    """Serve the host until it closes its end. Never returns."""
    served.main(confine)


def confine(request: Request, _ready: agent.Ready) -> list[str]:
    """The names of the controls that now hold. Raises OSError."""
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("identity", lambda: _become(request["becomes"])),
        ("rlimits", _no_core),
        ("no_new_privs", process.set_no_new_privs),
        ("capabilities", lambda: _capabilities(request["uid"], rw=request["rw"] is True)),
        ("dumpable", lambda: process.set_dumpable(False)),
    )
    for _, step in steps:
        step()
    return [name for name, _ in steps]


def _become(uid: object) -> None:
    """The host's files of the caller are root's here, who has no other's: be ``uid`` instead, in a
    user namespace below."""
    if isinstance(uid, int):
        KERNEL.unshare(abi.CLONE_NEWUSER)
        for name in ("gid_map", "uid_map"):  # there is no setgroups to deny first
            KERNEL.write(f"/proc/self/{name}", f"{uid} 0 1")


def _no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _capabilities(uid: object, *, rw: bool) -> None:
    """The bounding set is the runtime's: what root has, or nothing."""
    if uid == 0:
        KERNEL.capset(sum(1 << number for number in caps.of_root(rw=rw)))
    else:
        KERNEL.capset_none()
