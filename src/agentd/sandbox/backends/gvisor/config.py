"""``config.json`` for runsc: that of ``oci``, in the words that gVisor's kernel understands."""

import resource

from agentd.image.runtime.store import PLACE, AgentRuntime
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.oci import config
from agentd.sandbox.backends.oci.config import Json

_AGENT = "agentd.guest.zygote.in_gvisor"
_NPROC = "RLIMIT_NPROC"


def of_plan(plan: LinuxPlan, mounts: config.Mounts, runtime: AgentRuntime) -> Json:
    """The agent begins as root, and becomes the sandbox's user by a user namespace of gVisor's.

    No seccomp: what commands call is answered by gVisor's kernel, and by nothing of this one.
    """
    made = config.of_plan(
        plan,
        mounts,
        own_users=plan.uid == 0,
        argv=runtime.argv([], _AGENT),
        without={"seccomp"},
    )
    process = made["process"]
    assert isinstance(process, dict)  # noqa: S101  (made above; this narrows the type)
    process["env"] = []
    process["rlimits"] = [*_others(process["rlimits"]), *_processes(plan)]
    return made


def agent_files(runtime: AgentRuntime) -> tuple[tuple[str, str], ...]:
    """What of the host's is mounted for the agent: sources and targets."""
    return ((runtime.folder, PLACE),)


def _others(limits: list[dict[str, object]]) -> list[dict[str, object]]:
    return [limit for limit in limits if limit["type"] != _NPROC]


def _processes(plan: LinuxPlan) -> list[dict[str, object]]:
    """Held by gVisor's kernel: its processes are none of this one's."""
    most = plan.limits.pids
    if most is None:
        return []
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    return [{"type": _NPROC, "soft": most, "hard": most}]
