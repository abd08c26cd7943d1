"""The agent as PID 1 of a gVisor sandbox: what its kernel has of the steps of ``contained``.

gVisor's kernel (the sentry) has no Landlock, no securebits and no ambient set, and hands out no
listener of a seccomp filter: the sentry itself, a process without a privilege behind a filter of
its own, is what stands between a command and the machine.
"""

import os
import resource
import stat

from agentd.guest import agent
from agentd.guest.zygote import served
from agentd.guest.zygote.served import Request
from agentd.linux import abi, caps, process
from agentd.linux.kernel import KERNEL

# Whom no user namespace of a sandbox's user has: what is its own that user cannot change.
_NOBODY = 65534
_DEVICES = "/dev"
_GROUPS = "/sys/fs/cgroup"


def main() -> None:
    """Serve the host until it closes its end. Never returns."""
    served.main(confine)


def confine(request: Request, _ready: agent.Ready) -> list[str]:
    """Confines us; returns the names of the controls that now hold. Raises OSError."""
    steps = (
        ("limits", lambda: _show_limits(request.get("limits"))),
        ("devices", lambda: _give_away(request)),
        ("identity", lambda: _become(request["becomes"])),
        ("rlimits", _no_core),
        ("no_new_privs", process.set_no_new_privs),
        ("seccomp", lambda: _seccomp(str(request["filter"]))),
        ("capabilities", lambda: _capabilities(request["uid"], rw=request["rw"] is True)),
        ("dumpable", lambda: process.set_dumpable(False)),
    )
    return served.in_force(request, steps)


def _show_limits(limits: object) -> bool:
    """Have gVisor's control groups say what the host's enforce (``gvisor.config``)."""
    try:
        for path, most in limits.items() if isinstance(limits, dict) else ():
            KERNEL.write(f"{_GROUPS}/{path}", str(most))
    except OSError:  # another runsc may have no such file
        return False
    return bool(limits)


def _give_away(request: Request) -> bool:
    """Give nobody what root, who is the sandbox's user, would own beside its files.

    gVisor's /dev is in memory and has no bound, and mounted read-only its /dev/null cannot be
    opened for writing. Its control groups are for root to change.
    """
    if not isinstance(request["becomes"], int):
        return False
    _give(_DEVICES)
    if request.get("limits"):  # the groups are there
        os.chmod(_GROUPS, stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)
        for name in ("", *os.listdir(_GROUPS)):
            _give(f"{_GROUPS}/{name}")
    return True


def _give(folder: str) -> None:
    """Make nobody the owner of a folder and of what is in it, but for what is mounted there."""
    device = os.lstat(folder).st_dev
    pending = [folder]
    while pending:
        path = pending.pop()
        found = os.lstat(path)
        if found.st_dev != device:
            continue
        if stat.S_ISDIR(found.st_mode):
            pending.extend(f"{path}/{name}" for name in os.listdir(path))
        os.lchown(path, _NOBODY, _NOBODY)


def _become(uid: object) -> None:
    """The host's files of the caller are root's here, who has no other's: be ``uid`` instead, in a
    user namespace below."""
    if isinstance(uid, int):
        KERNEL.unshare(abi.CLONE_NEWUSER)
        for name in ("gid_map", "uid_map"):  # there is no setgroups to deny first
            KERNEL.write(f"/proc/self/{name}", f"{uid} 0 1")


def _seccomp(program: str) -> bool:
    """Whether there is one, for the agent and commands: gVisor's kernel says of a change of mode
    that this kernel refused that it was done, and lets who makes a user namespace make packets."""
    if not program:
        return False
    from agentd.linux import filtering  # some milliseconds, and few need it

    filtering.install(bytes.fromhex(program))
    return True


def _no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _capabilities(uid: object, *, rw: bool) -> None:
    """Root's bounding set is the runtime's; a user namespace below has one of its own, with all."""
    if uid == 0:
        KERNEL.capset(sum(1 << number for number in caps.of_root(rw=rw)))
    else:
        caps.drop_bounding()
        KERNEL.capset(0)
