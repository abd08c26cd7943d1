"""The ``oci`` backend: a runtime that the machine has, runc or crun, builds the wall."""

from agentd.image.runtime.store import PLACE
from agentd.model.enforcement import Enforcement
from agentd.model.isolation import IsolationLevel
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.oci import config, report
from agentd.sandbox.backends.oci.container import ContainerBackend
from agentd.sandbox.backends.oci.request import Lent, has_image, stacked
from agentd.sandbox.backends.oci.runtimes import RUNTIMES
from agentd.sandbox.backends.oci.starting import Contained

_AGENT = "agentd.guest.zygote.contained"


class OciBackend(ContainerBackend):
    name = "oci"
    level = IsolationLevel.NAMESPACE
    runtimes = RUNTIMES

    def requirements(self) -> tuple[str, ...]:
        return (
            "runc or crun",
            "Linux 5.12 or newer",
            "user namespaces",
            "seccomp filters",
            "cgroups for memory and CPU limits",
        )

    def _bundle(self, plan: LinuxPlan, lent: Lent, block: Block | None) -> dict[str, object]:
        argv, files = config.agent_argv(), config.agent_files()
        mounts = lent.mounts(plan)
        if has_image(plan) or config.is_covered(plan.spec, mounts):
            agent = self._agents()
            argv, files = agent.argv((), _AGENT), ((agent.folder, PLACE),)
        made = config.of_plan(
            plan,
            mounts,
            own_users=block is not None,
            argv=argv,
            shown=lent.shown(plan),
            shared=lent.shared is not None,
            without=self._without,
        )
        return {"config": made, "agent": files, "stack": stacked(plan, lent)}

    def _agent_request(self, plan: LinuxPlan, lent: Lent, block: Block | None) -> dict[str, object]:
        asked = super()._agent_request(plan, lent, block)
        return asked | {"coming": stacked(plan, lent)}

    def _enforcement(
        self, plan: LinuxPlan, controls: list[str], born: Contained, lent: Lent, runtime: str
    ) -> Enforcement:
        return report.enforcement(plan, controls, born, lent, runtime)
