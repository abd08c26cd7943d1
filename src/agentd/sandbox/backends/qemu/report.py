"""What the QEMU wall says of itself: the controls in force, asked and enforced."""

from collections.abc import Mapping, Sequence

from agentd.image.oci.values import OciImage
from agentd.linux import landlock
from agentd.linux.cgroup import Group
from agentd.model.enforcement import Control
from agentd.model.limits import MIB
from agentd.model.units import format_size
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.limits import capabilities_detail
from agentd.sandbox.backends.qemu.plan import QemuMachine, QemuPlan
from agentd.sandbox.backends.qemu.shares import Share
from agentd.sandbox.backends.vm import network
from agentd.sandbox.backends.vm.report import of_guest

_STEPS = {
    "user": "an unprivileged user of this machine's own",
    "capabilities": "",  # capabilities_detail() says
    "no_new_privs": "set-user-ID programs do nothing",
    "landlock": "writes no file; the monitor reads programs and the image",
    "seccomp": "profile monitor",
}
# Of the helper of a mount what differs.
_OF_SHARES = {
    "landlock": "reads programs and the host's folder, and writes there alone, where it is rw",
    "seccomp": "profile share",
}


def enforcement(
    plan: QemuPlan,
    machine: QemuMachine,
    controls: Mapping[str, Sequence[str]],
    setup: Sequence[str],
    group: Group | None,
    detail: str,
    shares: Sequence[Share] = (),
    image: OciImage | None = None,
) -> dict[str, Control]:
    """``controls`` of the monitor and the device; ``setup`` those that hold in the guest;
    ``detail`` says why there is no cgroup around them.
    """
    accel = "software emulation" if machine.accel == "tcg" else "hardware virtualisation"
    table = {
        "virtual_machine": Control(
            "default", True, f"accel={machine.accel}, {accel}; a kernel of its own"
        ),
        "guest_memory": Control("default", True, format_size(machine.memory)),
        "guest_cpus": Control("default", True, f"{machine.vcpus}"),
        "network": Control(plan.spec.net, False, "QEMU's user network, by NAT")
        if plan.spec.net == "host"
        else network.control(plan.spec),
    }
    for who, held in controls.items():
        for name, how in _STEPS.items():
            if who == "monitor" and name == "seccomp":
                table["monitor_seccomp"] = _monitor_filter(held)
            else:
                told = _OF_SHARES.get(name, how) if who == "share" else how
                table[f"{who}_{name}"] = _step(name, told, held)
    for share in shares:
        mount = share.mount
        how = f"{mount.named}, virtiofs {share.how}"
        table[f"mount {mount.target}"] = Control(str(mount.mode), True, how)
    table |= of_guest(plan.spec, plan.limits, setup, image)
    ceiling = group is not None and "memory" in group.controllers
    table["host_memory"] = Control(
        f"default {format_size(machine.memory // MIB * MIB)} and QEMU's own",
        ceiling,
        "cgroup controller memory" if ceiling else detail or "no memory controller",
    )
    return table


def _monitor_filter(held: Sequence[str]) -> Control:
    ours = " and agentd's, profile monitor" if "seccomp" in held else ""
    return Control("default", True, f"QEMU's own filter (-sandbox on){ours}")


def _step(name: str, how: str, held: Sequence[str]) -> Control:
    if name in held:
        return Control("default", True, how or capabilities_detail(held))
    if name == "landlock" and not landlock.abi_version():
        return Control("default", False, "the kernel has none")
    if name == "user":
        why = identity.hindrance() or "root here lacks CAP_SYS_ADMIN"
        return Control("default", False, f"the caller's own: {why}")
    return Control("default", False, "switched off")
