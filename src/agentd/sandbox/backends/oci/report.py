"""What a wall of an OCI runtime says of itself: the namespace wall's controls, and by whom."""

from collections.abc import Sequence

import msgspec

from agentd.linux import seccomp
from agentd.model.enforcement import Control
from agentd.sandbox.backends import configuration
from agentd.sandbox.backends.linux import report
from agentd.sandbox.backends.linux.born import uncounted
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.oci import config
from agentd.sandbox.backends.oci.request import Lent
from agentd.sandbox.backends.oci.starting import Contained

# What the runtime does before the agent runs, and what the builder does: the agent need not say so.
_BEFORE = ("hostname", "no_new_privs", "capabilities", "rlimits", "user_counts")


def enforcement(
    plan: LinuxPlan, controls: Sequence[str], born: Contained, lent: Lent, runtime: str
) -> dict[str, Control]:
    """Every control; ``controls`` are what the agent put in force, ``runtime`` its name and
    version."""
    digest = seccomp.digest(seccomp.build(config.profile(plan)))
    table = of_namespaces(plan, controls, born, lent, runtime, digest)
    for name in ("seccomp", "capabilities", "no_new_privs"):
        detail = f"{table[name].detail}; by {runtime}, and again by the agent"
        table[name] = msgspec.structs.replace(table[name], detail=detail)
    return table


def of_namespaces(
    plan: LinuxPlan, controls: Sequence[str], born: Contained, lent: Lent, runtime: str, digest: str
) -> dict[str, Control]:
    """What the namespace wall would say, with the runtime; ``digest`` is the seccomp filter's."""
    table = report.enforcement(
        plan,
        [*_BEFORE, *born.held, *controls],
        born.group,
        born.detail,
        own_user=born.block is not None,
        digest=digest,
        shown=len(configuration.trees(plan.spec.configuration)),
        lent={loan.mount.target: loan.how for loan in lent.loans},
        image=None if lent.image is None else lent.image.image,
        uncounted=uncounted(lent.shared, lent.loans),
    )
    return table | {"runtime": Control(plan.spec.runtime or "default", True, runtime)}
