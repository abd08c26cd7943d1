"""From a spec to a machine, and from a machine to QEMU's command line: pure, so that both can be
compared and tested.
"""

from typing import Any

import msgspec

from agentd.model.errors import InvalidInput, Refused
from agentd.model.limits import MIB, Limits
from agentd.model.mount import Mount, MountMode, check_apart
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.vm import network
from agentd.sandbox.backends.vm.size import size

PROGRAM = "qemu-system-x86_64"
PORT = 5000
SERIAL_PORT = "agentd"
CID = 3  # each machine has a device of its own, so that all may have the first free address
# QEMU's own: its heap and stacks, and under emulation the translated code, see tb-size.
HOST_OVERHEAD = 320 * MIB
HOST_TASKS = 128
_TRANSLATED_MIB = 128
# One template serves all that round up to the same size.
_STEP = 128 * MIB
_KVM_SET, _DISK_SET = 1, 2
#: The disk of an OCI image, by QEMU's names.
DISK = "image"
_DISK_ADDRESS = (
    "1e"  # a slot that what is plugged in later does not get: those are taken from below
)
_MAX_VCPUS = 64
MAX_MOUNTS = 8
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_KERNEL = (
    *("console=ttyS0", "quiet", "loglevel=4", "panic=-1", "random.trust_cpu=on"),
    # Where it is emulated and the host is busy, ten ticks do not come while the kernel counts for
    # them: "IO-APIC + timer doesn't work", and it panics. In KVM it leaves that out by itself.
    "no_timer_check",
    # A program that takes too much memory is to meet its limit, not the heuristic before it
    # (proc_sys_vm(5), overcommit_memory).
    "sysctl.vm.overcommit_memory=1",
    # Half a second of a boot under emulation: the self-tests of the crypto library, and a source
    # of entropy for that alone. The kernel's own random numbers need neither.
    *("cryptomgr.notests=1", "initcall_blacklist=jent_mod_init"),
)
#: Of QEMU's user network, slirp.
NET: dict[str, object] = {"address": "10.0.2.15/24", "gateway": "10.0.2.2", "dns": ["10.0.2.3"]}


class QemuMachine(msgspec.Struct, frozen=True):
    """The machine that a template and its clones share; ``memory`` is the guest's, in bytes."""

    memory: int
    vcpus: int
    accel: str = "tcg"
    machine: str = "pc"

    @property
    def key(self) -> str:
        return f"{self.machine}-{self.accel}-{self.memory // MIB}M-{self.vcpus}"


class QemuPlan(msgspec.Struct, frozen=True):
    """``limits`` have their defaults in; ``machine.accel`` is decided when it is launched."""

    spec: SandboxSpec
    limits: Limits
    machine: QemuMachine
    table: dict[str, Any] | None = None  # by which the relay decides, of a restricted network


def make_plan(spec: SandboxSpec) -> QemuPlan:
    """Raises InvalidInput or Refused."""
    _check_mounts(spec.mounts, image=bool(spec.image_digest))
    limits, memory, vcpus = size(spec, _STEP, _MAX_VCPUS, own_root=bool(spec.image_digest))
    return QemuPlan(spec, limits, QemuMachine(memory, vcpus), network.table(spec))


def _check_mounts(mounts: tuple[Mount, ...], *, image: bool) -> None:
    if len(mounts) > MAX_MOUNTS:
        raise InvalidInput(
            f"{len(mounts)} mounts are too many", remediation=f"at most {MAX_MOUNTS}"
        )
    check_apart(mounts, image=image)
    for mount in mounts:
        if mount.mode is MountMode.COW:
            raise Refused(
                f"backend qemu cannot mount {mount.source} copy-on-write",
                remediation="mount it ro and copy it, or use --backend linux",
            )


def host_limits(plan: QemuPlan, machine: QemuMachine) -> Limits:
    """Return the limits around QEMU and the device: a ceiling above what the guest itself holds."""
    return Limits(memory=ceiling(machine.memory), cpus=plan.limits.cpus, pids=HOST_TASKS)


def ceiling(memory: int) -> int:
    """Returns the bytes that QEMU and the device may hold for a guest with so many."""
    return memory + HOST_OVERHEAD


def command(machine: QemuMachine, kernel_arguments: str, program: str = PROGRAM) -> list[str]:
    """QEMU's command line. ``{kernel}``, ``{initramfs}``, ``{qmp}``, ``{serial}``, ``{console}``
    stand for the numbers of descriptors, with KVM ``{kvm}`` too; the machine waits for a state or
    for ``cont``.
    """
    size = f"{machine.memory // MIB}M"
    return [
        program,
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-sandbox", _SANDBOX),
        *("-machine", f"{machine.machine},memory-backend=ram,usb=off,vmport=off"),
        *_accelerated(machine),
        *("-cpu", "max", "-smp", str(machine.vcpus), "-m", size),
        *("-object", f"memory-backend-memfd,id=ram,size={size},share=on"),
        *("-kernel", "/proc/self/fd/{kernel}", "-initrd", "/proc/self/fd/{initramfs}"),
        *("-append", kernel_arguments),
        *("-chardev", "socket,id=console,fd={console}", "-serial", "chardev:console"),
        *("-chardev", "socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", "socket,id=serial,fd={serial},server=on,wait=off"),
        *("-device", "virtio-serial-pci,id=ports,max_ports=2,addr=4"),
        *("-device", f"virtserialport,chardev=serial,name={SERIAL_PORT},nr=1"),
    ]


def disk_block(path: str) -> dict[str, object]:
    """Describes the block device of the disk of an image, of a file: nobody's to write, and never
    guessed what it is by its content."""
    file = {"driver": "file", "filename": path, "locking": "off", "read-only": True}
    return {"driver": "raw", "node-name": DISK, "read-only": True, "file": file}


def disk_device(serial: str) -> dict[str, object]:
    """In a place of its own, the same where a machine is restored."""
    device = {"driver": "virtio-blk-pci", "id": DISK, "drive": DISK, "serial": serial}
    return {**device, "addr": _DISK_ADDRESS}


def disk_arguments(serial: str) -> list[str]:
    """``{disk}`` stands for the number of a descriptor."""
    block, device = disk_block(f"/dev/fdset/{_DISK_SET}"), disk_device(serial)
    return [
        *("-add-fd", f"fd={{disk}},set={_DISK_SET}"),
        *("-blockdev", msgspec.json.encode(block).decode()),
        *("-device", msgspec.json.encode(device).decode()),
    ]


def _accelerated(machine: QemuMachine) -> list[str]:
    if machine.accel == "tcg":
        return ["-accel", f"tcg,thread=multi,tb-size={_TRANSLATED_MIB}"]
    # Opened by whoever asks for the machine: the monitor's own user may not, and need not.
    return ["-add-fd", f"fd={{kvm}},set={_KVM_SET}", "-accel", f"kvm,device=/dev/fdset/{_KVM_SET}"]


def kernel_arguments() -> str:
    """A panic ends the machine at once; what follows ``--`` is init's."""
    return " ".join((*_KERNEL, f"-- --listen vsock:{PORT} --listen virtio:{SERIAL_PORT}"))
