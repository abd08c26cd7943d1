"""The ``gvisor`` backend: runsc builds the wall, as ``oci`` has its runtimes build one."""

import os

import msgspec

from agentd.model.enforcement import Enforcement
from agentd.model.errors import Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.sandbox.backends.gvisor import config, report
from agentd.sandbox.backends.gvisor.runsc import BASE_MEMORY, RUNTIMES
from agentd.sandbox.backends.gvisor.wall import GvisorWall
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.oci.container import Contained, ContainerBackend
from agentd.sandbox.backends.oci.request import Lent

# Of this kernel's processes and threads: those of gVisor's kernel, and what it runs each of the
# sandbox's in. Beyond that it ends, which only a sandbox that is beside itself sees.
_THREADS, _THREADS_EACH = 1024, 4


class GvisorBackend(ContainerBackend[GvisorWall]):
    name = "gvisor"
    level = IsolationLevel.USERSPACE_KERNEL
    known = RUNTIMES
    runtimes = tuple(RUNTIMES)
    images = False
    writable = False
    abilities = frozenset({"pause"})

    def requirements(self) -> tuple[str, ...]:
        return (
            "runsc (gVisor)",
            "Linux 5.12 or newer",
            "user namespaces",
            "cgroups for memory and CPU limits",
        )

    def plan(self, spec: SandboxSpec) -> LinuxPlan:
        """Raises InvalidInput or Refused, also where runsc is not there."""
        if spec.image != DEFAULT_IMAGE:
            raise Refused(
                f"backend {self.name} cannot have an image", remediation="use --backend linux"
            )
        plan = super().plan(spec)
        if plan.cow:
            raise Refused(
                f"backend {self.name} cannot have a workspace that is copy-on-write",
                remediation="use --backend linux",
            )
        if spec.net != "none":
            raise Refused(
                f"backend gvisor cannot have the network {spec.net}",
                cause="gVisor would hand what commands do with sockets on to this kernel",
                remediation="leave --net out, or use --backend linux",
            )
        return plan

    def _bundle(self, plan: LinuxPlan, lent: Lent, block: Block | None) -> dict[str, object]:
        agent = self._agents()
        changed: dict[str, object] = {
            "config": config.of_plan(plan, lent.mounts(plan), agent),
            "agent": config.agent_files(agent),
        }
        if plan.uid != 0:
            # What opens files for gVisor is root of the sandbox's user namespace: folders are lent
            # to that one, and the agent maps itself to it.
            changed |= {"uid": 0, "maps": [(0, 0 if block is None else block.id, 1)]}
        return changed

    def _agent_request(self, plan: LinuxPlan, lent: Lent, block: Block | None) -> dict[str, object]:
        return super()._agent_request(plan, lent, block) | {"becomes": plan.uid or None}

    def _bounds(self, limits: Limits) -> Limits:
        memory, pids = limits.memory, limits.pids
        return msgspec.structs.replace(
            limits,
            memory=None if memory is None else memory + BASE_MEMORY,
            pids=None if pids is None else pids * _THREADS_EACH + _THREADS,
        )

    def _kind(self, plan: LinuxPlan) -> type[GvisorWall]:
        return GvisorWall

    def _attach(self, wall: GvisorWall, plan: LinuxPlan, born: Contained, lent: Lent) -> None:
        os.close(born.disk)

    def _enforcement(
        self, plan: LinuxPlan, controls: list[str], born: Contained, runtime: str, lent: Lent
    ) -> Enforcement:
        return report.enforcement(
            plan,
            controls,
            born.group,
            born.detail,
            runtime=runtime,
            own_user=born.block is not None,
            lent={loan.mount.target: loan.how for loan in lent.loans},
        )
