"""The cgroup of one sandbox: made when it can be, refused when it must be and cannot."""

import contextlib
import errno
import os
import re
import socket
from collections.abc import Collection, Iterator

from agentd.linux import cgroup
from agentd.model.errors import Refused, SandboxError
from agentd.model.limits import Limits
from agentd.model.units import readable_size
from agentd.sandbox.backends.child import unsent

_NAME = re.compile(r"sbx-(\d+)-(\d+)-[0-9a-f]+\Z")
_CONTROLLERS = {"memory": "memory", "cpus": "cpu", "pids": "pids"}
_hierarchy: cgroup.Hierarchy | str | None = None


def own_hierarchy() -> cgroup.Hierarchy | str:
    """The hierarchy that this process may make groups in, or why there is none; looked up once.

    The first look also removes the groups of agentd processes that have died.
    """
    global _hierarchy  # noqa: PLW0603  (a cache of a fact of the machine)
    if _hierarchy is None:
        found = cgroup.detect()
        if found is None:
            _hierarchy = "no memory, cpu or pids controller is mounted"
        elif found.blockers():
            _hierarchy = found.blockers()[0]
        else:
            _reap_stale(found)
            _hierarchy = found
    return _hierarchy


def make_group(
    asked: Limits, limits: Limits, needed: Collection[str] = ("memory", "cpus")
) -> tuple[cgroup.Group | None, str]:
    """A group with the limits, and the reason where there is none.

    ``needed`` are the limits that nothing but a group can hold: Refused is raised when one of
    them was asked for and there is no group for it.
    """
    hierarchy = own_hierarchy()
    for name in needed:
        controller = _CONTROLLERS[name]
        if getattr(asked, name) is None:
            continue
        if isinstance(hierarchy, str):
            raise _refused(name, hierarchy)
        if controller not in hierarchy.controllers:
            raise _refused(name, f"no {controller} controller is mounted")
    if isinstance(hierarchy, str):
        return None, hierarchy
    group = hierarchy.create(group_name(), memory=limits.memory, pids=limits.pids, cpus=limits.cpus)
    return group, ""


def let_in(listener: socket.socket, group: cgroup.Group | None) -> None:
    """Pass a new sandbox the doors to its group; it goes in by itself before it is ready.

    Moving another process waits for an RCU grace period, 5 to 20 ms on an idle machine; a thread
    that moves itself does not. The doors count as opened by us, so this takes no right in there.
    """
    doors = group.doors() if group is not None else []
    try:
        socket.send_fds(listener, [b"g"], doors)
    except OSError as error:
        if error.errno == errno.EPIPE:
            return  # it has ended: whoever awaits it reads why
        raise unsent("sandbox", error) from error
    finally:
        for fd in doors:
            os.close(fd)


@contextlib.contextmanager
def explained(group: cgroup.Group | None, limits: Limits) -> Iterator[None]:
    """A sandbox that ends within it for its limit of memory is told to be too small.

    Raises SandboxError for it.
    """
    try:
        yield
    except SandboxError as error:
        if group is None or not group.counters().get("oom"):
            raise
        raise SandboxError(
            f"memory of {readable_size(limits.memory or 0)} is too little to build the sandbox",
            remediation="ask for more, or have limits.max and the policy allow more",
        ) from error


def _refused(name: str, why: str) -> Refused:
    bound = "bound each process by ulimit -v, " if name == "memory" else ""
    return Refused(
        f"--{name} cannot be enforced here",
        cause=why.partition(": ")[0],  # its own fix is the same
        remediation=f"leave --{name} out, {bound}run as root, or have systemd delegate a cgroup "
        "(systemd-run --user --scope -p Delegate=yes)",
    )


def group_name() -> str:
    """Names its owner, so that a later process can tell whether it died: sbx-PID-START-RANDOM."""
    return f"sbx-{os.getpid()}-{_start_time(os.getpid())}-{os.urandom(4).hex()}"


def is_stale(name: str) -> bool:
    """Return whether it is a name of ``group_name`` whose owner has died."""
    match = _NAME.match(name)
    return match is not None and _start_time(int(match[1])) != int(match[2])


def _reap_stale(hierarchy: cgroup.Hierarchy) -> None:
    """Remove what can be removed: whoever may signal what lives in the others does so later."""
    for name in hierarchy.stale("sbx-"):
        if is_stale(name):
            with contextlib.suppress(OSError):
                hierarchy.reap(name)


def _start_time(pid: int) -> int:
    """Clock ticks after boot at which a process started (proc(5), stat, field 22); 0 if gone.

    One that is dead and waits to be reaped is gone.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
