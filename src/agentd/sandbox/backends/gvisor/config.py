"""``config.json`` for runsc: that of ``oci``, in the words that gVisor's kernel understands."""

import resource
from collections.abc import Collection, Mapping

from agentd.guest.zygote.cgroup_view import PLACE as GROUPS
from agentd.image.runtime.store import PLACE, AgentRuntime
from agentd.linux import abi, seccomp
from agentd.linux.seccomp.filter import compile_rules
from agentd.linux.seccomp.rules import NAMESPACES
from agentd.linux.seccomp.set_id_rules import SET_ID
from agentd.sandbox.backends.cgroups import own_hierarchy
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.oci import config
from agentd.sandbox.backends.oci.config import Json

_AGENT = "agentd.guest.zygote.in_gvisor"
_NPROC = "RLIMIT_NPROC"
_PERIOD = 100_000  # microseconds, of which so many may be used: what gVisor says unasked


def of_plan(
    plan: LinuxPlan, mounts: config.Mounts, runtime: AgentRuntime, shown: Collection[str]
) -> Json:
    """The agent begins as root, and becomes the sandbox's user by a user namespace of gVisor's.

    No seccomp: what commands call is answered by gVisor's kernel, and by nothing of this one. What
    that one asks of this kernel for them, ``set_id_filter`` bounds.
    """
    made = config.of_plan(
        plan,
        mounts,
        own_users=plan.uid == 0,
        argv=runtime.argv([], _AGENT),
        shown=shown,
        without={"seccomp"},
    )
    process = made["process"]
    assert isinstance(process, dict)  # noqa: S101  (made above; this narrows the type)
    if shown_limits(plan):
        mounts_ = made["mounts"]
        assert isinstance(mounts_, list)  # noqa: S101  (as above)
        flags = ["nosuid", "noexec", "nodev"]
        group = {"type": "cgroup", "source": "cgroup", "destination": GROUPS, "options": flags}
        mounts_.append(group)
    if plan.uid != 0:  # the agent's own at first, to give /dev away
        process["capabilities"] = _with(process["capabilities"], "CAP_CHOWN")
    # Held by gVisor's kernel, whose processes are none of this one's.
    process["rlimits"] = [
        *_others(process["rlimits"]),
        *config.rlimit(resource.RLIMIT_NOFILE, plan.limits.open_files),
        *config.rlimit(resource.RLIMIT_NPROC, plan.limits.pids),
    ]
    return made


def shown_limits(plan: LinuxPlan) -> dict[str, int]:
    """Return what files of gVisor's own control groups are to say: the limits that the sandbox's
    group on the host enforces. JVMs and others size themselves by them."""
    if isinstance(own_hierarchy(), str):  # there is no group
        return {}
    memory, cpus = plan.limits.memory, plan.limits.cpus
    found = {} if memory is None else {"memory/memory.limit_in_bytes": memory}
    return found if cpus is None else {**found, "cpu/cpu.cfs_quota_us": round(cpus * _PERIOD)}


def set_id_filter() -> bytes:
    """For runsc, where a folder of the host's is mounted rw: a mode that a command sets is one that
    runsc's processes set on the host.

    It kills nobody: what a command calls by a number of another convention is runsc's to answer.
    """
    return seccomp.build("share", kills=False)


def inner_filter(plan: LinuxPlan) -> bytes:
    """For the agent and commands, in gVisor's kernel: that of set-id bits for the answer, and where
    there is a device no user namespace, in which they could make its packets; or none."""
    rules = SET_ID * plan.rw + NAMESPACES * (plan.spec.net == "restricted")
    return compile_rules(rules, abi.MACHINE, kills=False) if rules else b""


def agent_files(runtime: AgentRuntime) -> tuple[tuple[str, str], ...]:
    """Returns what of the host's is mounted for the agent: sources and targets."""
    return ((runtime.folder, PLACE),)


def _with(sets: Mapping[str, list[str]], name: str) -> Json:
    return {kind: [*names, name] if names else [] for kind, names in sets.items()}


def _others(limits: list[dict[str, object]]) -> list[dict[str, object]]:
    return [limit for limit in limits if limit["type"] != _NPROC]
