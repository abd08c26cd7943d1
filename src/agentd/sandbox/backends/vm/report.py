"""What every machine's wall says of the guest, whatever its monitor is."""

from collections.abc import Collection

from agentd.image.oci.values import OciImage
from agentd.model.enforcement import Control
from agentd.model.limits import Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.limits import limit_control

_IDENTITY = {"entropy", "machine_id", "boot_id", "clock"}
_ROOT = "the machine's own, in its memory: bounded by that, not by the disk limit"
_LIMITS = {
    "memory": "the guest's cgroup, and the machine's memory",
    "cpus": "the guest's cgroup",
    "pids": "the guest's cgroup",
    "disk": "one tmpfs in the guest",
    "open_files": "RLIMIT_NOFILE, each process",
}


def of_guest(
    spec: SandboxSpec, limits: Limits, setup: Collection[str], image: OciImage | None = None
) -> dict[str, Control]:
    """Reports the guest's identity and limits, and its root where that is asked for. ``limits``
    have their defaults in; ``setup`` names the controls that hold in the guest, none where its
    agent is not ours. ``image`` is the root of commands, where it is not the machine's."""
    own = "own random numbers, machine-id, boot_id and clock"
    foreign = "as the image has it: its agent is not ours"
    table = {"identity": Control("default", set(setup) >= _IDENTITY, own if setup else foreign)}
    if image is not None:
        table["image"] = Control(spec.image, True, image.digest)
        how = "can be written to, on the disk limit" if spec.writable else "read-only"
        told = f"{how}, of the image {spec.image}, {image.digest}, a disk that nobody writes to"
        table["root"] = Control("writable" if spec.writable else "default", True, told)
    elif spec.writable:
        table["root"] = Control("writable", True, _ROOT)
    for name, how in _LIMITS.items():
        value = getattr(limits, name)
        if value is not None:
            held = name in setup
            detail = how if held else "not set in the guest"
            table[name] = limit_control(getattr(spec.limits, name), value, held, detail)
    return table
