"""Limits with their defaults, and how each is reported."""

from collections.abc import Collection

import msgspec

from agentd.linux.cgroup import Group
from agentd.model.enforcement import Control
from agentd.model.limits import DEFAULTS, Limits
from agentd.model.units import format_size


def with_defaults(limits: Limits) -> Limits:
    fields = {name: getattr(limits, name) for name in limits.__struct_fields__}
    given = {name: value for name, value in fields.items() if value is not None}
    merged = msgspec.structs.replace(DEFAULTS, **given)
    if limits.disk is None and merged.memory is not None and merged.disk is not None:
        # The disk is memory too: full, it must leave some for the processes.
        return msgspec.structs.replace(merged, disk=min(merged.disk, merged.memory // 2))
    return merged


def limit_control(
    asked: int | float | None, value: int | float | None, enforced: bool, detail: str
) -> Control:
    """``asked`` is None where ``value`` is a default."""
    wanted = value if asked is None else asked
    whole = isinstance(wanted, int) and wanted >= 1 << 20
    text = format_size(int(wanted or 0)) if whole else f"{wanted:g}"
    return Control(text if asked is not None else f"default {text}", enforced, detail)


def capabilities_detail(controls: Collection[str]) -> str:
    """What there is to say of a process whose capabilities were dropped."""
    if "bounding" in controls:
        return "none in any set, and none can be gained"
    return "none held, and under no_new_privs none can be gained; the bounding set is the caller's"


def agent_detail(controls: Collection[str]) -> str:
    """How the agent is protected from the commands that it runs."""
    more = ", nor its limits and priority be changed" if "seccomp" in controls else ""
    return f"the agent cannot be traced or read{more}"


def group_controls(
    asked: Limits, limits: Limits, group: Group | None, detail: str
) -> dict[str, Control]:
    """The limits that a cgroup holds; ``detail`` says why there is none."""
    table = {}
    for name, controller in (("memory", "memory"), ("cpus", "cpu"), ("pids", "pids")):
        value = getattr(limits, name)
        if value is None:
            continue
        held = group is not None and controller in group.controllers
        how = f"cgroup controller {controller}" if held else detail or f"no {controller} controller"
        table[name] = limit_control(getattr(asked, name), value, held, how)
    return table
