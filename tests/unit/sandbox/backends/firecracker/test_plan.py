import pytest

from agentd.model.errors import InvalidInput, Refused
from agentd.model.limits import MIB, Limits
from agentd.model.mount import Mount, MountMode
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.firecracker.plan import (
    HOST_OVERHEAD,
    host_limits,
    make_plan,
)
from agentd.sandbox.backends.vm.size import GUEST_OVERHEAD


def test_memory_is_the_sandboxes_and_the_guests_own() -> None:
    plan = make_plan(SandboxSpec(limits=Limits(memory=300 * MIB + 1)))
    assert plan.memory % (2 * MIB) == 0
    assert 0 <= plan.memory - (300 * MIB + 1 + GUEST_OVERHEAD) < 2 * MIB
    assert host_limits(plan).memory == plan.memory + HOST_OVERHEAD


@pytest.mark.parametrize(("cpus", "vcpus"), [(None, 1), (0.5, 1), (1.0, 1), (1.1, 2), (32.0, 32)])
def test_parts_of_a_cpu_are_rounded_up(cpus: float | None, vcpus: int) -> None:
    plan = make_plan(SandboxSpec(limits=Limits(cpus=cpus)))
    assert plan.vcpus == vcpus
    assert host_limits(plan).cpus == cpus


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        (SandboxSpec(net="host"), Refused, "no network"),
        (SandboxSpec(net="bridge"), InvalidInput, "unknown network"),
        (SandboxSpec(mounts=(Mount("/a", "/workspace", MountMode.RW),)), Refused, "mount /a"),
        (SandboxSpec(user="nobody"), InvalidInput, "unknown user"),
        (SandboxSpec(limits=Limits(cpus=33)), InvalidInput, "32 CPUs"),
        (SandboxSpec(limits=Limits(memory=1 << 41)), InvalidInput, "1T"),
    ],
)
def test_what_a_machine_cannot_be_is_refused(
    spec: SandboxSpec, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make_plan(spec)
