"""What is asked of Firecracker's API, in order: pure, so that it can be checked against its schema.

Paths are the jail's. Documentation: docs/getting-started.md and src/firecracker/swagger of
github.com/firecracker-microvm/firecracker.
"""

from collections.abc import Iterator
from typing import NamedTuple

from agentd.linux import dialled
from agentd.model.limits import MIB
from agentd.sandbox.backends.firecracker.plan import PORT, FirecrackerPlan
from agentd.sandbox.backends.firecracker.version import Quirks, check_restore

# In the jail's root.
KERNEL = "kernel"
INITRAMFS = "initramfs"
STATE = "state"
MEMORY = "memory"
# A machine that was restored has those two bound read-only: its own snapshot goes elsewhere.
NEW_STATE = "new-state"
NEW_MEMORY = "new-memory"
METRICS = "metrics"
#: Relative, so that a restored machine finds it in its own jail: no override is needed.
VSOCK = "vsock"
#: Where Firecracker connects what the guest dials at that port of its host (its docs/vsock.md).
NETWORK = f"{VSOCK}_{dialled.PORT}"
GUEST_CID = 3  # may be the same in all machines: each has a socket of its own

#: Ends by ``reboot=k``, which ends Firecracker; ``panic=1`` makes a reboot of a panic. No console:
#: it is slow, and what it prints is the guest's. i8042 words save tens of ms of probing.
ARGUMENTS = (
    "reboot=k panic=1 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce "
    "sysctl.vm.overcommit_memory=1 "  # a program over its limit meets that, not the heuristic
    "cryptomgr.notests=1 initcall_blacklist=jent_mod_init "  # see qemu/plan.py
    f"random.trust_cpu=on quiet loglevel=1 -- --listen vsock:{PORT}"
)
# Bytes and how many ms they are for. A guest reads entropy to seed itself, not in bulk, and the
# serial port stays there for it even though its kernel was told of none.
_ENTROPY = (64 << 10, 1_000)
_SERIAL = (16 << 10, 1_000)


class ApiRequest(NamedTuple):
    method: str
    path: str
    body: dict[str, object] | None


def boot(plan: FirecrackerPlan, found: Quirks) -> Iterator[ApiRequest]:
    """List the requests from a fresh process to a running guest."""
    yield from _observe()
    yield ApiRequest(
        "PUT",
        "/boot-source",
        {"kernel_image_path": KERNEL, "initrd_path": INITRAMFS, "boot_args": ARGUMENTS},
    )
    yield ApiRequest(
        "PUT",
        "/machine-config",
        {
            "vcpu_count": plan.vcpus,
            "mem_size_mib": plan.memory // MIB,
            "smt": False,  # sibling threads share caches: one machine's vCPUs count as strangers
            "track_dirty_pages": False,
        },
    )
    yield ApiRequest("PUT", "/vsock", {"guest_cid": GUEST_CID, "uds_path": VSOCK})
    yield ApiRequest("PUT", "/entropy", {"rate_limiter": {"bandwidth": _bucket(*_ENTROPY)}})
    if found.serial_limiter:
        yield ApiRequest("PUT", "/serial", {"rate_limiter": _bucket(*_SERIAL)})
    yield ApiRequest("PUT", "/actions", {"action_type": "InstanceStart"})


def restore(found: Quirks) -> Iterator[ApiRequest]:
    """List those from a fresh process to a running clone of what ``STATE`` and ``MEMORY`` hold.

    The agent sets the clock: by Firecracker's ``clock_realtime`` the monotonic one would jump, and
    every timer that is overdue fire at once. Raises Refused for what the release cannot do.
    """
    check_restore(found)
    yield from _observe()
    body: dict[str, object] = {
        "snapshot_path": STATE,
        "mem_backend": {"backend_type": "File", "backend_path": MEMORY},
        "resume_vm": True,
    }
    yield ApiRequest("PUT", "/snapshot/load", body)


def snapshot() -> ApiRequest:
    """Return the request that snapshots a paused machine."""
    return ApiRequest(
        "PUT",
        "/snapshot/create",
        {"snapshot_type": "Full", "snapshot_path": NEW_STATE, "mem_file_path": NEW_MEMORY},
    )


def state(name: str) -> ApiRequest:
    """``Paused`` or ``Resumed``."""
    return ApiRequest("PATCH", "/vm", {"state": name})


def _observe() -> Iterator[ApiRequest]:
    """Log to standard output, which is kept within bounds; metrics to a file in the jail.

    Of warnings a guest can make as many as it likes, and at each boot it looks for a real-time
    clock that is not there: they would push out why the monitor ended.
    """
    yield ApiRequest("PUT", "/logger", {"level": "Error", "show_level": True})
    yield ApiRequest("PUT", "/metrics", {"metrics_path": METRICS})


def _bucket(size: int, refill_ms: int) -> dict[str, object]:
    return {"size": size, "refill_time": refill_ms}
