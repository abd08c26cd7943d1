"""The ``gvisor`` backend: runsc builds the wall, as ``oci`` has its runtimes build one."""

import os

import msgspec

from agentd.model.availability import Availability
from agentd.model.enforcement import Enforcement
from agentd.model.errors import Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.gvisor import config, report
from agentd.sandbox.backends.gvisor.runsc import BASE_MEMORY, NETWORK, RUNTIMES
from agentd.sandbox.backends.gvisor.wall import GvisorOverlayWall, GvisorWall
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.oci.container import ContainerBackend
from agentd.sandbox.backends.oci.request import Lent
from agentd.sandbox.backends.oci.starting import Contained

# Of this kernel's processes and threads: those of gVisor's kernel, and what it runs each of the
# sandbox's in. Beyond that it ends, which only a sandbox that is beside itself sees.
_THREADS, _THREADS_EACH = 1024, 4
_KVM_RUNTIME, _KVM = "runsc-kvm", "/dev/kvm"


def _opens_kvm() -> bool:
    """Whether runsc could: without root it is us, as root a user of no group."""
    try:
        mode = os.stat(_KVM).st_mode
    except OSError:
        return False
    return mode & 0o006 == 0o006 or (os.geteuid() != 0 and os.access(_KVM, os.R_OK | os.W_OK))


class GvisorBackend(ContainerBackend):
    name = "gvisor"
    level = IsolationLevel.USERSPACE_KERNEL
    runtimes = RUNTIMES
    walls = GvisorWall, GvisorOverlayWall

    def requirements(self) -> tuple[str, ...]:
        return (
            "runsc (gVisor)",
            "Linux 5.12 or newer",
            "user namespaces",
            "cgroups for memory and CPU limits",
        )

    def probe(self) -> Availability:
        """As ``oci``. KVM is not tried: where it runs no ordinary guest runsc waits for ever."""
        found = super().probe()
        notes = [note for note in found.notes if not note.startswith("runsc-kvm")]
        return msgspec.structs.replace(found, notes=tuple(notes))

    def plan(self, spec: SandboxSpec) -> LinuxPlan:
        """Raises as ``oci``, and Refused for a network, or KVM that cannot be opened."""
        plan = super().plan(spec)
        if spec.runtime == _KVM_RUNTIME and not _opens_kvm():
            raise Refused(
                f"runtime {_KVM_RUNTIME} cannot open {_KVM}",
                cause="it is not there, or not for who runsc runs as",
                remediation=f"drop --runtime, or let every user open {_KVM}",
            )
        if spec.net not in NETWORK:
            raise Refused(
                f"backend gvisor cannot have the network {spec.net}",
                cause="gVisor would hand what commands do with sockets on to this kernel",
                remediation="name what it is to reach (--net pypi), or use --backend linux",
            )
        return plan

    def _flags(self, plan: LinuxPlan) -> tuple[str, ...]:
        return (NETWORK[plan.spec.net],)

    def _bundle(self, plan: LinuxPlan, lent: Lent, block: Block | None) -> dict[str, object]:
        agent = self._agents()
        changed: dict[str, object] = {
            "config": config.of_plan(plan, lent.mounts(plan), agent, lent.shown(plan)),
            "agent": config.agent_files(agent),
            "device": plan.spec.net == "restricted",
        }
        if plan.rw and "set_id" not in self._without:
            changed["filter"] = config.set_id_filter().hex()
        if plan.uid != 0:
            # What opens files for gVisor is root of the sandbox's user namespace: folders are lent
            # to that one, and the agent maps itself to it.
            changed |= {"uid": 0, "maps": [(0, 0 if block is None else block.id, 1)]}
        return changed

    def _agent_request(self, plan: LinuxPlan, lent: Lent, block: Block | None) -> dict[str, object]:
        filter_ = config.inner_filter(plan).hex()
        asked = super()._agent_request(plan, lent, block)
        limits = config.shown_limits(plan)
        return asked | {"becomes": plan.uid or None, "filter": filter_, "limits": limits}

    def _bounds(self, limits: Limits) -> Limits:
        memory, pids = limits.memory, limits.pids
        return msgspec.structs.replace(
            limits,
            memory=None if memory is None else memory + BASE_MEMORY,
            pids=None if pids is None else pids * _THREADS_EACH + _THREADS,
        )

    def _enforcement(
        self, plan: LinuxPlan, controls: list[str], born: Contained, lent: Lent, runtime: str
    ) -> Enforcement:
        return report.enforcement(plan, controls, born, lent, runtime)
