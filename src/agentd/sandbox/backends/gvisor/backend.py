"""The ``gvisor`` backend: runsc builds the wall, as ``oci`` has its runtimes build one."""

import threading

import msgspec

from agentd.image.runtime import store
from agentd.model.enforcement import Enforcement
from agentd.model.errors import Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.gvisor import config, report
from agentd.sandbox.backends.gvisor.runsc import BASE_MEMORY, RUNTIMES
from agentd.sandbox.backends.gvisor.wall import GvisorWall
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux.loans import Loan
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.oci.backend import Contained, OciBackend
from agentd.sandbox.backends.oci.config import Mounts

# Of this kernel's processes and threads: those of gVisor's kernel, and what it runs each of the
# sandbox's in. Beyond that it ends, which only a sandbox that is beside itself sees.
_THREADS, _THREADS_EACH = 1024, 4


class GvisorBackend(OciBackend):
    name = "gvisor"
    level = IsolationLevel.USERSPACE_KERNEL
    known = RUNTIMES
    runtimes = tuple(RUNTIMES)
    wall = GvisorWall

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        super().__init__(without)
        self._agent: store.AgentRuntime | None = None
        self._making = threading.Lock()

    def requirements(self) -> tuple[str, ...]:
        return (
            "runsc (gVisor)",
            "Linux 5.12 or newer",
            "user namespaces",
            "cgroups for memory and CPU limits",
        )

    def plan(self, spec: SandboxSpec) -> LinuxPlan:
        """Raises InvalidInput or Refused, also where runsc is not there."""
        plan = super().plan(spec)
        if spec.net != "none":
            raise Refused(
                f"backend gvisor cannot have the network {spec.net}",
                cause="gVisor would hand what commands do with sockets on to this kernel",
                remediation="leave --net out, or use --backend linux",
            )
        return plan

    def _bundle(self, plan: LinuxPlan, mounts: Mounts, block: Block | None) -> dict[str, object]:
        agent = self._agents()
        changed: dict[str, object] = {
            "config": config.of_plan(plan, mounts, agent),
            "agent": config.agent_files(agent),
        }
        if plan.uid != 0:
            # What opens files for gVisor is root of the sandbox's user namespace: folders are lent
            # to that one, and the agent maps itself to it.
            changed |= {"uid": 0, "maps": [(0, 0 if block is None else block.id, 1)]}
        return changed

    def _agent_request(
        self, plan: LinuxPlan, lent: list[Loan], block: Block | None
    ) -> dict[str, object]:
        return super()._agent_request(plan, lent, block) | {"becomes": plan.uid or None}

    def _bounds(self, limits: Limits) -> Limits:
        memory, pids = limits.memory, limits.pids
        return msgspec.structs.replace(
            limits,
            memory=None if memory is None else memory + BASE_MEMORY,
            pids=None if pids is None else pids * _THREADS_EACH + _THREADS,
        )

    def _enforcement(
        self, plan: LinuxPlan, controls: list[str], born: Contained, runtime: str, lent: list[Loan]
    ) -> Enforcement:
        return report.enforcement(
            plan,
            controls,
            born.group,
            born.detail,
            runtime=runtime,
            own_user=born.block is not None,
            shown=born.shown,
            lent={loan.mount.target: loan.how for loan in lent},
        )

    def close(self) -> None:
        super().close()
        with self._making:
            agent, self._agent = self._agent, None
        if agent is not None:
            agent.close()

    def _agents(self) -> store.AgentRuntime:
        """The agent's own interpreter: an image may have none."""
        with self._making:
            if self._agent is None:
                self._agent = store.ensure()
            return self._agent
