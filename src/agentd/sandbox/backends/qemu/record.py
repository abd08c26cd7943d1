"""What is kept beside the state of a machine, and whether the state can go on here."""

import os

import msgspec

from agentd.model import typed
from agentd.model.errors import Refused, SandboxError
from agentd.sandbox.backends.qemu.boot import Boot
from agentd.sandbox.backends.qemu.plan import QemuMachine, QemuPlan
from agentd.sandbox.backends.qemu.probe import Monitor
from agentd.sandbox.backends.vm import states
from agentd.sandbox.backends.vm.image import DiskRoot

STATE, RECORD = "memory.state", "machine.json"
_FORMAT = 1


class MachineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``machine.json``: what a state fits, and the digest of its file. ``oci`` is the OCI image's
    digest and ``disk`` that of its disk, which the guest's kernel knows blocks of."""

    format: int
    image: str
    monitor: str
    machine: QemuMachine
    digest: str
    oci: str = ""
    disk: str = ""


def read_record(folder: str) -> tuple[MachineRecord, int]:
    """Return what a snapshot says of itself, and its verified state, the caller's to close.

    Raises SandboxError.
    """
    try:
        with open(f"{folder}/{RECORD}", "rb") as file:
            record = typed.decoder(MachineRecord).decode(file.read(1 << 16))
        fd = os.open(f"{folder}/{STATE}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (OSError, msgspec.MsgspecError) as error:
        raise SandboxError(f"{folder} holds no snapshot of qemu", cause=str(error)) from error
    if states.digest(fd) != record.digest:
        os.close(fd)
        raise SandboxError(f"the snapshot in {folder} is damaged", remediation="take it again")
    return record, fd


def of(machine: QemuMachine, boot: Boot, monitor: Monitor, root: DiskRoot | None) -> MachineRecord:
    """Of a machine that runs, whose state has no digest yet."""
    oci, disk = ("", "") if root is None else (root.image.digest, root.disk_digest)
    return MachineRecord(_FORMAT, boot.digest, monitor.key, machine, "", oci, disk)


def check_image(kept: MachineRecord, now: MachineRecord) -> None:
    """Check that the image is the one that a snapshot was taken of. Raises Refused."""
    if kept.oci != now.oci:
        raise Refused(
            "the image is another now than the one that the snapshot was taken of",
            cause=f"{kept.oci or 'none'}, and now {now.oci or 'none'}",
            remediation="pull that one again under this name, or take the snapshot anew",
        )
    if kept.disk != now.disk:
        raise Refused(
            "the disk of the image was made anew since the snapshot was taken, and is another",
            remediation="take the snapshot anew",
        )


def check(record: MachineRecord, plan: QemuPlan, boot: Boot, monitor: Monitor) -> None:
    """Check that a snapshot can go on here. Raises Refused."""
    fits = {
        "another version of the image": record.image == boot.digest,
        "another QEMU": record.monitor == monitor.key,
        f"accel={record.machine.accel}": record.machine.accel == monitor.accel,
        "another format": record.format == _FORMAT,
        f"a machine of {record.machine.memory} bytes": (
            record.machine.memory == plan.machine.memory
        ),
    }
    for what, fit in fits.items():
        if not fit:
            raise Refused(
                f"the snapshot was taken with {what}",
                remediation="take it again, or restore it where it was taken",
            )
