"""The plan is pure: the same spec gives the same machine and the same command line."""

from typing import Any

import pytest

from agentd.model.errors import InvalidInput, Refused
from agentd.model.limits import MIB, Limits
from agentd.model.mount import Mount, MountMode
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.qemu import plan as plans
from agentd.sandbox.backends.qemu.plan import QemuMachine, command, host_limits, make_plan

RO = MountMode.RO


def test_the_machine_of_a_plain_spec() -> None:
    plan = make_plan(SandboxSpec())
    assert plan.machine == QemuMachine(1280 * MIB, 1)
    assert plan.limits.memory == 1024 * MIB
    assert plan.limits.pids == 512


@pytest.mark.parametrize(
    ("limits", "memory", "vcpus"),
    [
        (Limits(memory=64 * MIB), 256 * MIB, 1),
        (Limits(memory=96 * MIB), 256 * MIB, 1),
        (Limits(memory=96 * MIB + 1), 384 * MIB, 1),
        (Limits(memory=1 << 33), (1 << 33) + 256 * MIB, 1),
        (Limits(cpus=0.5), 1280 * MIB, 1),
        (Limits(cpus=1.5), 1280 * MIB, 2),
        (Limits(cpus=4), 1280 * MIB, 4),
    ],
)
def test_the_guest_has_more_than_the_sandbox_may_use(
    limits: Limits, memory: int, vcpus: int
) -> None:
    assert make_plan(SandboxSpec(limits=limits)).machine == QemuMachine(memory, vcpus)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (SandboxSpec(net="some"), InvalidInput),
        (SandboxSpec(user="nobody"), InvalidInput),
        (SandboxSpec(limits=Limits(memory=1 << 41)), InvalidInput),
        (SandboxSpec(limits=Limits(cpus=65)), InvalidInput),
        (SandboxSpec(mounts=(Mount("/srv", "/workspace", MountMode.COW),)), Refused),
        (SandboxSpec(mounts=(Mount("/srv", "/a", RO), Mount("/srv", "/a/b", RO))), InvalidInput),
        (SandboxSpec(mounts=(Mount("/srv", "/a", RO), Mount("/tmp", "/a", RO))), InvalidInput),
        (SandboxSpec(mounts=tuple(Mount("/", f"/{n}", RO) for n in range(9))), InvalidInput),
    ],
)
def test_what_cannot_be_met_is_refused_with_its_fix(
    spec: SandboxSpec, error: type[InvalidInput | Refused]
) -> None:
    with pytest.raises(error) as caught:
        make_plan(spec)
    assert caught.value.remediation


def test_the_ceiling_around_qemu_is_above_the_guests_memory() -> None:
    plan = make_plan(SandboxSpec(limits=Limits(cpus=0.5)))
    limits = host_limits(plan, plan.machine)
    assert limits.memory is not None
    assert plan.machine.memory < limits.memory <= plan.machine.memory + 512 * MIB
    assert limits.cpus == 0.5


def test_a_kernel_that_is_starved_of_ticks_does_not_panic_for_that() -> None:
    assert "no_timer_check" in plans.kernel_arguments().partition(" -- ")[0].split()


def test_the_command_line() -> None:
    assert command(QemuMachine(256 * MIB, 2), "quiet -- --listen x", "/usr/bin/qemu") == [
        "/usr/bin/qemu",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine",
        "pc,memory-backend=ram,usb=off,vmport=off",
        "-accel",
        "tcg,thread=multi,tb-size=128",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "256M",
        "-object",
        "memory-backend-memfd,id=ram,size=256M,share=on",
        "-kernel",
        "/proc/self/fd/{kernel}",
        "-initrd",
        "/proc/self/fd/{initramfs}",
        "-append",
        "quiet -- --listen x",
        "-chardev",
        "socket,id=console,fd={console}",
        "-serial",
        "chardev:console",
        "-chardev",
        "socket,id=qmp,fd={qmp}",
        "-mon",
        "chardev=qmp,mode=control",
        "-chardev",
        "socket,id=serial,fd={serial},server=on,wait=off",
        "-device",
        "virtio-serial-pci,id=ports,max_ports=2,addr=4",
        "-device",
        "virtserialport,chardev=serial,name=agentd,nr=1",
    ]


def test_the_hardware_is_used_where_it_works() -> None:
    words = command(QemuMachine(256 * MIB, 1, accel="kvm"), "")
    assert words[words.index("-accel") + 1] == "kvm,device=/dev/fdset/1"
    assert words[words.index("-add-fd") + 1] == "fd={kvm},set=1"


def test_a_panic_ends_the_machine_and_the_agent_listens_twice() -> None:
    arguments = plans.kernel_arguments().split(" -- ")
    assert "panic=-1" in arguments[0].split()
    assert arguments[1] == "--listen vsock:5000 --listen virtio:agentd"


@pytest.mark.parametrize(
    "other",
    [
        {"memory": 512 * MIB},
        {"vcpus": 2},
        {"accel": "kvm"},
        {"machine": "q35"},
    ],
)
def test_each_kind_of_machine_has_its_own_template(other: dict[str, Any]) -> None:
    usual = {"memory": 256 * MIB, "vcpus": 1}
    assert QemuMachine(**usual).key != QemuMachine(**(usual | other)).key
