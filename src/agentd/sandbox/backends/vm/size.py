"""What any machine can be asked for, and how large it is then: pure."""

import math

from agentd.model.errors import InvalidInput, Refused
from agentd.model.limits import MIB, Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.limits import with_defaults
from agentd.sandbox.backends.users import parse_user

# The guest's kernel, its root in memory and the agent, beside what the sandbox may use.
GUEST_OVERHEAD = 160 * MIB
_MAX_MEMORY = 1 << 40


def size(
    spec: SandboxSpec, step: int, most_vcpus: int, *, own_root: bool = False
) -> tuple[Limits, int, int]:
    """Returns the limits with their defaults in, the machine's memory in bytes, a multiple of
    ``step``, and its virtual CPUs. ``own_root``: commands are in another root than the machine's.
    Raises InvalidInput."""
    if spec.net not in ("none", "host", "restricted"):
        raise InvalidInput(
            f"unknown network {spec.net!r}", remediation="use none, host or restricted"
        )
    uid = parse_user(spec.user)
    if spec.writable and uid != 0 and not own_root:
        raise Refused(
            "the root of a virtual machine is written to by its root alone",
            remediation="add --user root, or ask for --isolation namespace",
        )
    limits = with_defaults(spec.limits)
    memory = (limits.memory or 0) + GUEST_OVERHEAD
    if memory > _MAX_MEMORY:
        raise InvalidInput("a machine has at most 1T of memory", remediation="lower --memory")
    vcpus = max(1, math.ceil(limits.cpus or 1))
    if vcpus > most_vcpus:
        raise InvalidInput(f"a machine has at most {most_vcpus} CPUs", remediation="lower --cpus")
    return limits, -(-memory // step) * step, vcpus
