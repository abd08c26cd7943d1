"""Limits with their defaults, and how each is reported."""

import functools
import math
import resource
from collections.abc import Collection

import msgspec

from agentd.linux.cgroup import Group, scope
from agentd.model.enforcement import Control
from agentd.model.errors import InvalidInput
from agentd.model.limits import DEFAULTS, Limits
from agentd.model.units import format_size

_SCOPED = " in a scope of your systemd"
MOST_FILES = (1 << 63) - 1
# With fewer no interpreter of today's gets far; below, a machine has too little for a default.
_LEAST_FILES = 256
_LEAST_PIDS = 64
_UNCOUNTED = "file locks, listings of overlays"


def with_defaults(limits: Limits) -> Limits:
    fields = {name: getattr(limits, name) for name in limits.__struct_fields__}
    given = {name: value for name, value in fields.items() if value is not None}
    merged = msgspec.structs.replace(DEFAULTS, **given)
    if limits.disk is None and merged.memory is not None and merged.disk is not None:
        # The disk is memory too: full, it must leave some for the processes.
        return msgspec.structs.replace(merged, disk=min(merged.disk, merged.memory // 2))
    return merged


def processors(cpus: float | None) -> dict[str, str]:
    """Returns variables by which programs start no more threads than a limit of CPU time feeds.

    No kernel shows such a limit as fewer processors: nproc(1), OpenMP and Python ask these.
    """
    if cpus is None:
        return {}
    count = str(max(1, math.ceil(cpus)))
    return {"OMP_NUM_THREADS": count, "PYTHON_CPU_COUNT": count}


def on_this_kernel(limits: Limits) -> Limits:
    """Returns ``usual`` of a sandbox that shares the host's kernel. Raises InvalidInput for more
    open files than we ourselves may have."""
    most = _own_most()
    if limits.open_files is not None and limits.open_files > most:
        raise InvalidInput(
            f"{limits.open_files} open files are more than agentd itself may have, {most}",
            remediation="ask for less, or raise its hard limit (ulimit -Hn, LimitNOFILE=)",
        )
    return usual(limits)


def usual(limits: Limits) -> Limits:
    """Returns ``with_defaults`` for this machine: where nothing was asked, the descriptors of one
    sandbox hold at most a quarter of its table of open files, and none more than we may."""
    merged = with_defaults(limits)
    if limits.open_files is not None:
        return merged
    quarter = file_max() // 4
    pids = merged.pids or 1
    if limits.pids is None:
        pids = min(pids, max(quarter // _LEAST_FILES, _LEAST_PIDS))
    files = min(max(quarter // pids, _LEAST_FILES), _own_most(), merged.open_files or MOST_FILES)
    return msgspec.structs.replace(merged, open_files=files, pids=merged.pids and pids)


def _own_most() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MOST_FILES if hard == resource.RLIM_INFINITY else hard


@functools.cache
def file_max() -> int:
    """Return how many files can be open on this machine, by all but root."""
    try:
        with open("/proc/sys/fs/file-max", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return MOST_FILES


def limit_control(
    asked: int | float | None, value: int | float | None, enforced: bool, detail: str
) -> Control:
    """Returns what is said of a limit. ``asked`` is None where ``value`` is a default."""
    wanted = value if asked is None else asked
    whole = isinstance(wanted, int) and wanted >= 1 << 20
    text = format_size(int(wanted or 0)) if whole else f"{wanted:g}"
    return Control(text if asked is not None else f"default {text}", enforced, detail)


def capabilities_detail(controls: Collection[str]) -> str:
    """Return what there is to say of a process whose capabilities were dropped."""
    if "bounding" in controls:
        return "none in any set, and none can be gained"
    return "none held, and under no_new_privs none can be gained; the bounding set is the caller's"


def agent_detail(controls: Collection[str]) -> str:
    """Return how the agent is protected from the commands that it runs."""
    more = ", nor its limits and priority be changed" if "seccomp" in controls else ""
    return f"the agent cannot be traced or read{more}"


def group_controls(
    asked: Limits, limits: Limits, group: Group | None, detail: str
) -> dict[str, Control]:
    """Returns the limits that a cgroup holds; ``detail`` says why there is none."""
    table = {}
    scoped = group is not None and _in_scope()
    for name, controller in (("memory", "memory"), ("cpus", "cpu"), ("pids", "pids")):
        value = getattr(limits, name)
        if value is None:
            continue
        held = group is not None and controller in group.controllers
        how = f"cgroup controller {controller}{_SCOPED if scoped else ''}"
        if not held:
            how = detail or f"no {controller} controller"
        if group is not None and held and name == "memory":
            how += _beside(group, value)
        table[name] = limit_control(getattr(asked, name), value, held, how)
    return table


@functools.cache  # whoever enters one does so before it makes its first group
def _in_scope() -> bool:
    return bool(scope.current())


def _beside(group: Group, memory: int) -> str:
    """Return what the kernel does not count as the group's memory."""
    apart = group.sockets_apart(memory)
    if apart == 0:
        return f", sockets' buffers too; not counted: {_UNCOUNTED}"
    if apart is None:
        return f"; not counted: sockets' buffers, {_UNCOUNTED}"
    return f"; sockets' buffers beside it, at most {format_size(apart)}; not counted: {_UNCOUNTED}"
