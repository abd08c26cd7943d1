"""From a spec to a machine: pure, so that it can be compared and tested."""

from typing import Any

import msgspec

from agentd.model.errors import Refused
from agentd.model.limits import MIB, Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.vm import network
from agentd.sandbox.backends.vm.size import size

PORT = 5000
# Firecracker's own is below 5 MiB (SPECIFICATION.md); page tables and kernel memory come to it.
HOST_OVERHEAD = 64 * MIB
HOST_TASKS = 128  # one thread a vCPU, two of its own, and the jailer
_MAX_VCPUS = 32
_STEP = 2 * MIB


class FirecrackerPlan(msgspec.Struct, frozen=True):
    """``limits`` have their defaults in; ``memory`` is the machine's, in bytes."""

    spec: SandboxSpec
    limits: Limits
    memory: int
    vcpus: int
    table: dict[str, Any] | None = None  # by which the relay decides, of a restricted network


def make_plan(spec: SandboxSpec) -> FirecrackerPlan:
    """Raises InvalidInput or Refused."""
    limits, memory, vcpus = size(spec, _STEP, _MAX_VCPUS)
    if spec.net == "host":
        raise Refused(
            "backend firecracker has no network card",
            remediation="use rules (--net pypi), or --backend qemu",
        )
    if spec.mounts:
        raise Refused(
            f"backend firecracker cannot mount {spec.mounts[0].source}",
            remediation="leave the mount out and copy files in, or use --backend qemu",
        )
    return FirecrackerPlan(spec, limits, memory, vcpus, network.table(spec))


def host_limits(plan: FirecrackerPlan) -> Limits:
    """Return the limits around the monitor: a ceiling above what the guest itself holds."""
    return Limits(memory=ceiling(plan.memory), cpus=plan.limits.cpus, pids=HOST_TASKS)


def ceiling(memory: int) -> int:
    """Returns the bytes that the monitor may hold for a guest with so many."""
    return memory + HOST_OVERHEAD
