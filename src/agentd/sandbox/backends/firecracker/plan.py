"""From a spec to a machine: pure, so that it can be compared and tested."""

import math

import msgspec

from agentd.model.errors import InvalidInput, Refused
from agentd.model.limits import MIB, Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.limits import with_defaults

PORT = 5000
# The guest's kernel, its root in memory and the agent, beside what the sandbox may use.
GUEST_OVERHEAD = 160 * MIB
# Firecracker's own is below 5 MiB (SPECIFICATION.md); page tables and kernel memory come to it.
HOST_OVERHEAD = 64 * MIB
HOST_TASKS = 128  # one thread a vCPU, two of its own, and the jailer
MAX_VCPUS = 32
_MAX_MEMORY = 1 << 40
_STEP = 2 * MIB


class FirecrackerPlan(msgspec.Struct, frozen=True):
    """``limits`` have their defaults in; ``memory`` is the machine's, in bytes."""

    spec: SandboxSpec
    limits: Limits
    memory: int
    vcpus: int


def make_plan(spec: SandboxSpec) -> FirecrackerPlan:
    """Raises InvalidInput or Refused."""
    if spec.net not in ("none", "host"):
        raise InvalidInput(f"unknown network {spec.net!r}", remediation="use none or host")
    if spec.net == "host":
        raise Refused(
            "backend firecracker has no network",
            remediation="use --net none, or --backend qemu",
        )
    if spec.mounts:
        raise Refused(
            f"backend firecracker cannot mount {spec.mounts[0].source}",
            remediation="leave the mount out and copy files in, or use --backend linux",
        )
    if spec.user not in (None, "sandbox", "root"):
        raise InvalidInput(f"unknown user {spec.user!r}", remediation="use root or sandbox")
    limits = with_defaults(spec.limits)
    memory = (limits.memory or 0) + GUEST_OVERHEAD
    if memory > _MAX_MEMORY:
        raise InvalidInput("a machine has at most 1T of memory", remediation="lower --memory")
    vcpus = max(1, math.ceil(limits.cpus or 1))
    if vcpus > MAX_VCPUS:
        raise InvalidInput(f"a machine has at most {MAX_VCPUS} CPUs", remediation="lower --cpus")
    return FirecrackerPlan(spec, limits, -(-memory // _STEP) * _STEP, vcpus)


def host_limits(plan: FirecrackerPlan) -> Limits:
    """Of the cgroup around the monitor: a ceiling above what the guest itself holds."""
    return Limits(memory=ceiling(plan.memory), cpus=plan.limits.cpus, pids=HOST_TASKS)


def ceiling(memory: int) -> int:
    """Bytes that the monitor may hold for a guest with so many."""
    return memory + HOST_OVERHEAD
