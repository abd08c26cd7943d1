"""What sandboxes share with others of their user, by the kernel's own counts; and what bounds it.

A sandbox of root's has a user of its own, but what is counted in user namespaces counts in those
above as well: there all sandboxes of one zygote are the zygote's. Without root they are the caller.
"""

import functools
import resource

from agentd.linux import calls, container
from agentd.model.availability import Blocker
from agentd.model.enforcement import Control
from agentd.sandbox.backends import identity

_PARTS = 4
# Of user.max_* (namespaces(7)): what takes a namespace or a capability is refused anyway.
_WORDS = {"max_inotify_instances": "instances", "max_inotify_watches": "watches"}
_LEAST_LOCKED = 64 << 10  # what gpg wants
_QUEUED_SIGNALS = 16384
_KERNEL = (
    "all processes of the machine share the kernel's memory for file locks and seccomp filters, "
    "tcp_mem and udp_mem"
)
_BY_USER = "descriptors in flight, pipe buffers and epoll watches"


@functools.cache
def user_counts() -> list[tuple[str, int]]:
    """Returns a quarter of what a user may have, by name in /proc/sys/user."""
    return [(name, most // _PARTS) for name in _WORDS if (most := _read(name)) >= _PARTS]


@functools.cache
def user_rlimits(*, own_user: bool | None = None) -> list[tuple[int, int]]:
    """Return what queued signals, message queues and locked memory are bounded to, by resource: a
    quarter of the caller's, and all of it where nobody else has this user. Nobody goes before the
    host's programs, though the caller may."""
    apart = identity.available() if own_user is None else own_user
    parts = 1 if apart else _PARTS
    found = [(resource.RLIMIT_RTPRIO, 0), (resource.RLIMIT_NICE, 0)]
    for number, least, most in (
        (resource.RLIMIT_SIGPENDING, 0, _QUEUED_SIGNALS),
        (resource.RLIMIT_MSGQUEUE, 0, resource.RLIM_INFINITY),
        (resource.RLIMIT_MEMLOCK, _LEAST_LOCKED, resource.RLIM_INFINITY),
    ):
        hard = resource.getrlimit(number)[1]
        own = hard if hard == resource.RLIM_INFINITY else max(hard // parts, min(hard, least))
        bounded = [limit for limit in (own, most) if limit != resource.RLIM_INFINITY]
        if bounded:
            found.append((number, min(bounded)))
    return found


def of_namespaces(held: bool, own_user: bool) -> Control:
    """``held``: the counts are bounded in the sandbox's user namespace."""
    watched = " and ".join(f"{most} inotify {_WORDS[name]}" for name, most in user_counts())
    bounds = f"each has at most {watched}" if held else "without a bound: switched off"
    if own_user:
        text = f"a user of its own; the sandboxes of one agentd share inotify, {bounds}; {_KERNEL}"
        return Control("default", held, text)
    text = f"the caller's own user: they share inotify, {bounds}, and {_BY_USER}; {_KERNEL}"
    return Control("default", False, text)


def of_processes(own_user: bool) -> Control:
    """Share one without a user namespace."""
    if own_user:
        return Control("default", True, f"a user of its own; {_KERNEL}")
    text = f"the caller's own user: they share inotify, {_BY_USER}; {_KERNEL}"
    return Control("default", False, text)


def refused_calls() -> list[Blocker]:
    """Return what neither wall of this kernel can do without, and a seccomp profile around us
    refuses."""
    if names := calls.refused():
        what = f"{', '.join(names)}: refused here, as by a seccomp profile"
        fix = container.fix("seccomp")
        if "clone3" in names:
            fix += "; or update its engine (Docker: 20.10.10), to answer clone3 with ENOSYS"
        return [Blocker(what, fix)]
    return []


def _read(name: str) -> int:
    try:
        with open(f"/proc/sys/user/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
