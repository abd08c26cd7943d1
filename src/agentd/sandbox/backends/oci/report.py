"""What a wall of an OCI runtime says of itself: the namespace wall's controls, and by whom."""

from collections.abc import Mapping, Sequence

import msgspec

from agentd.image.oci.values import OciImage
from agentd.linux import seccomp
from agentd.linux.cgroup import Group
from agentd.model.enforcement import Control, Enforcement
from agentd.sandbox.backends import configuration
from agentd.sandbox.backends.linux import report
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.oci import config

#: What the runtime does before the agent runs: the agent need not say so.
BY_RUNTIME = ("hostname", "no_new_privs", "capabilities", "rlimits")
#: What else the builder does.
BY_BUILDER = ("user_counts",)


def enforcement(
    plan: LinuxPlan,
    controls: Sequence[str],
    group: Group | None,
    detail: str,
    *,
    runtime: str,
    own_user: bool,
    lent: Mapping[str, str],
    image: OciImage | None,
) -> Enforcement:
    """``runtime`` is its name and version; the rest as ``linux.report.enforcement`` has it."""
    held = [*BY_RUNTIME, *BY_BUILDER, *controls]
    digest = seccomp.digest(seccomp.build(config.profile(plan)))
    table = report.enforcement(
        plan,
        held,
        group,
        detail,
        own_user=own_user,
        digest=digest,
        shown=len(configuration.trees(plan.spec.configuration)),
        lent=lent,
        image=image,
    )
    table["runtime"] = Control(plan.spec.runtime or "default", True, runtime)
    for name in ("seccomp", "capabilities", "no_new_privs"):
        table[name] = _by(table[name], runtime)
    return table


def _by(control: Control, runtime: str) -> Control:
    detail = f"{control.detail}; by {runtime}, and again by the agent"
    return msgspec.structs.replace(control, detail=detail)
