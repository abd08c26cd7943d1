"""The cgroup of one sandbox: made when it can be, refused when it must be and cannot."""

import contextlib
import errno
import os
import re
import socket
import threading
from collections.abc import Collection, Iterator
from functools import cache
from typing import TYPE_CHECKING

from agentd.linux import cgroup
from agentd.model.errors import Refused, SandboxError
from agentd.sandbox.backends.child import unsent

if TYPE_CHECKING:  # a zygote is begun before msgspec is there
    from agentd.model.limits import Limits

# Without the third number: of an agentd that did not tell its pid namespace.
_NAME = re.compile(r"sbx-(\d+)-(\d+)(?:-(\d+))?-[0-9a-f]+\Z")
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # linux/proc_ns.h, PROC_PID_INIT_INO
_CONTROLLERS = {"memory": "memory", "cpus": "cpu", "pids": "pids"}
_DELEGATED = 2  # the version of which systemd gives an ordinary user a part
_hierarchy: cgroup.Hierarchy | str | None = None
_lock = threading.RLock()
# RLIMIT_NPROC counts a fork before the cgroup refuses it.
_FORKS_IN_FLIGHT = 64


def own_hierarchy() -> cgroup.Hierarchy | str:
    """Finds, once, the hierarchy that this process may make groups in, or why there is none.

    The first look also removes the groups of agentd processes that have died, and has the systemd
    of an ordinary user give this process a scope where its own group is not delegated to it. What
    it starts afterwards is in there, too: so it is asked before that.
    """
    global _hierarchy  # noqa: PLW0603  (a cache of a fact of the machine)
    with _lock:
        if _hierarchy is None:
            _hierarchy = _look()
        return _hierarchy


def lacking() -> dict[str, str]:
    """Return the abilities that no sandbox has here whose processes only a group could hold, and
    why."""
    found = own_hierarchy()
    return {"pause": found} if isinstance(found, str) else {}


def ready_to_start() -> None:
    """Finds ``own_hierarchy`` for whoever starts what a group will hold, and needs none yet."""
    if os.geteuid() != 0:  # root's can be moved at any time
        own_hierarchy()


def _look() -> cgroup.Hierarchy | str:
    found, why = cgroup.detect(), ""
    if _lacks_delegation(found):
        why = cgroup.scope.enter()
        found = found if why else cgroup.detect()
    if found is None:
        return f"no memory, cpu or pids controller is mounted{why and f', and {why}'}"
    if blockers := found.blockers():
        what, colon, fix = blockers[0].partition(": ")
        return f"{what}{why and f', and {why}'}{colon}{fix}"
    _reap_stale(found)
    return found


def _lacks_delegation(found: cgroup.Hierarchy | None) -> bool:
    """Return whether an ordinary user could have more of a scope than of the group that it is
    in."""
    if os.geteuid() == 0:
        return False
    if found is None:
        return True
    return found.version == _DELEGATED and (
        bool(found.blockers()) or found.controllers < frozenset(cgroup.LIMITING)
    )


def uncounted(name: str) -> str:
    """Say why no group here holds the limit ``memory``, ``cpus`` or ``pids``; "" where one does."""
    hierarchy = own_hierarchy()
    if isinstance(hierarchy, str):
        return hierarchy
    controller = _CONTROLLERS[name]
    return "" if controller in hierarchy.controllers else _without(controller, hierarchy)


def make_group(
    asked: "Limits", limits: "Limits", needed: Collection[str] = ("memory", "cpus")
) -> tuple[cgroup.Group | None, str]:
    """Makes a group with the limits, and the reason where there is none.

    ``needed`` are the limits that nothing but a group can hold: Refused is raised when one of
    them was asked for and there is no group for it.
    """
    for name in needed:
        if getattr(asked, name) is not None and (why := uncounted(name)):
            raise _refused(name, why)
    hierarchy = own_hierarchy()
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
    names = ",".join(group.hierarchies()) if group is not None else "none"
    try:
        socket.send_fds(listener, [names.encode()], doors)
    except OSError as error:
        if error.errno == errno.EPIPE:
            return  # it has ended: whoever awaits it reads why
        raise unsent("sandbox", error) from error
    finally:
        for fd in doors:
            os.close(fd)


@contextlib.contextmanager
def explained(group: cgroup.Group | None, limits: "Limits") -> Iterator[None]:
    """Says of a sandbox that ends within it for its limit of memory that this is too small.

    Raises SandboxError for it.
    """
    try:
        yield
    except SandboxError as error:
        if group is None or not group.counters().get("oom"):
            raise
        from agentd.model.units import readable_size

        raise SandboxError(
            f"memory of {readable_size(limits.memory or 0)} is too little to build the sandbox",
            remediation="ask for more, or have limits.max and the policy allow more",
        ) from error


def _without(controller: str, hierarchy: cgroup.Hierarchy) -> str:
    if os.geteuid() == 0 or hierarchy.version != _DELEGATED:
        return f"no {controller} controller is mounted"
    needed = " ".join(cgroup.LIMITING)
    how = f"systemctl edit user@.service, [Service] Delegate={needed}, and log in anew"
    return f"the {controller} controller is not delegated to this user (as root, {how})"


def _refused(name: str, why: str) -> Refused:
    bound = "bound each process by ulimit -v, " if name == "memory" else ""
    return Refused(
        f"--{name} cannot be enforced here",
        cause=why.partition(": ")[0],  # its own fix is the same
        remediation=f"leave --{name} out, also of [limits] and [[template]], {bound}run as root, "
        "or have systemd delegate a cgroup (systemd-run --user --scope -p Delegate=yes)",
    )


def group_name() -> str:
    """Names its owner, so that a later process can tell whether it died:
    sbx-PID-START-NAMESPACE-RANDOM, the third the inode of the pid namespace that PID is of."""
    return f"sbx-{_owner(os.getpid())}-{os.urandom(4).hex()}"


@cache  # none of it changes while a process lives; one that was forked has another pid
def _owner(pid: int) -> str:
    return f"{pid}-{_start_time(pid)}-{_pid_namespace()}"


def is_stale(name: str) -> bool:
    """Return whether it is a name of ``group_name`` whose owner has died, as far as can be seen:
    numbers of another pid namespace say nothing here."""
    match = _NAME.match(name)
    if match is None:
        return False
    pid, start, namespace = match.groups()
    if namespace is None or int(namespace) == _pid_namespace():
        return _start_time(int(pid)) != int(start)
    return int(namespace) != 0 and _is_gone(int(namespace))


def _pid_namespace() -> int:
    """Its inode; 0 where /proc is of another."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _is_gone(namespace: int) -> bool:
    """Return whether no process is in that pid namespace: only the first one has them all."""
    if _pid_namespace() != _FIRST_PID_NAMESPACE:
        return False
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}/ns/pid").st_ino == namespace:
                return False
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            return False  # another user's: it may be there
    return True


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


def process_rlimit(pids: int | None) -> int | None:
    """Returns one above the cgroup's where there is one: only the cgroup tells that it was met."""
    hierarchy = own_hierarchy()
    counted = isinstance(hierarchy, cgroup.Hierarchy) and "pids" in hierarchy.controllers
    return pids + _FORKS_IN_FLIGHT if pids is not None and counted else pids
