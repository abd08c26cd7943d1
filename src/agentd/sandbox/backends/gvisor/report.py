"""What a wall of gVisor says of itself.

Commands have gVisor's kernel, so that what the namespace wall says of this one's controls is not
true of them: those hold gVisor's kernel, and are one row.
"""

from collections.abc import Sequence

import msgspec

from agentd.linux import seccomp
from agentd.model.enforcement import Control
from agentd.model.units import format_size
from agentd.sandbox.backends.gvisor import config
from agentd.sandbox.backends.gvisor.runsc import BASE_MEMORY
from agentd.sandbox.backends.limits import limit_control
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.oci.report import of_namespaces
from agentd.sandbox.backends.oci.request import Lent
from agentd.sandbox.backends.oci.starting import Contained

_SENTRY = (
    "in namespaces and an empty root of its own, behind a seccomp filter that runsc installs; as {}"
)
_AGENT = (
    "it cannot be traced nor its memory read; maps, environment and the list of its descriptors "
    "can, and a command can end it"
)
_NO_FILTER = "commands make no system call of this kernel's: gVisor's kernel answers them"
_NO_LANDLOCK = "gVisor's kernel has none; what is not to be written is mounted read-only"
_NONE_HELD = (
    "none in any set, in gVisor's kernel; a user namespace that a command makes has some over what "
    "is its own"
)
_NONE_MADE = "none in any set, in gVisor's kernel, where a filter refuses user namespaces"
_SHARED = "keyrings, inotify and the like are gVisor's, which is a process of this kernel"
_SET_ID = (
    "a folder of the host's is mounted rw: profile share, digest {}, on runsc and what it starts, "
    "and in gVisor's kernel"
)
_DEV = (
    "; root's /dev and /sys/fs/cgroup are gVisor's, in memory: of these the memory limit alone is "
    "a bound"
)
_SAME = (
    *("runtime", "image", "hostname", "network", "no_new_privs"),
    *("memory", "cpus", "disk", "open_files"),
)


def enforcement(
    plan: LinuxPlan, controls: Sequence[str], born: Contained, lent: Lent, runtime: str
) -> dict[str, Control]:
    """As ``oci.report.enforcement``; ``runtime`` names runsc and its version."""
    told = of_namespaces(plan, controls, born, lent, runtime, digest="")
    own_user = born.block is not None
    platform = "kvm" if runtime.startswith("runsc-kvm") else "systrap"
    user = "a user that owns nothing" if own_user else "the caller's own user"
    asked = "writable" if plan.spec.writable else "default"
    table = {
        "userspace_kernel": Control("default", True, f"gVisor, {platform}, by {runtime}"),
        "sentry": Control("default", own_user, _SENTRY.format(user)),
        "root": Control(asked, True, told["mount_namespace"].detail),
        "capabilities": _capabilities(plan, told["capabilities"], "capabilities" in controls),
        "seccomp": Control("default", False, _NO_FILTER),
        "landlock": Control("default", False, _NO_LANDLOCK),
        "agent_protected": Control("default", False, _AGENT),
        "shared": Control("default", True, _SHARED),
        "pids": _pids(plan),
    }
    for name, control in told.items():
        if name in _SAME or name.startswith("mount "):
            table[name] = control
    if plan.rw:
        digest = seccomp.digest(config.set_id_filter())
        table["set_id"] = Control("default", "filter" in born.held, _SET_ID.format(digest))
    if plan.uid == 0:
        table["disk"] = _told(table["disk"], _DEV)
    if table["memory"].enforced:
        more = f"; {format_size(BASE_MEMORY)} more for gVisor's kernel; over it all of it ends"
        table["memory"] = _told(table["memory"], more)
    return table


def _capabilities(plan: LinuxPlan, namespaces: Control, held: bool) -> Control:
    none = _NONE_MADE if plan.spec.net == "restricted" else _NONE_HELD
    how = f"{namespaces.detail}; in gVisor's kernel" if plan.uid == 0 else none
    return Control("default", held, how if held else "switched off")


def _pids(plan: LinuxPlan) -> Control:
    alone = plan.uid != 0
    how = "RLIMIT_NPROC in gVisor's kernel" if alone else "RLIMIT_NPROC does not bound root"
    return limit_control(plan.spec.limits.pids, plan.limits.pids, alone, how)


def _told(control: Control, more: str) -> Control:
    return msgspec.structs.replace(control, detail=control.detail + more)
