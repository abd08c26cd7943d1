"""The volumes and packages among a sandbox's mounts, taken for as long as its wall stands."""

import contextlib
from collections.abc import Sequence

from agentd.model.mount import Mount
from agentd.sandbox.volume_lease import VolumeLease


def take(mounts: tuple[Mount, ...], undo: contextlib.ExitStack) -> Sequence[VolumeLease | None]:
    """Takes a lease of each that is a volume, or packages. Raises NotFound, Conflict."""
    found: list[VolumeLease | None] = []
    for mount in mounts:
        lease: VolumeLease | None = None
        if mount.volume:
            from agentd.sandbox import volumes  # late: few sandboxes have one

            lease = volumes.store_of(mount).lease(mount)
            undo.callback(lease.close)
        elif mount.packages:
            from agentd.sandbox import packages  # late, too

            lease = packages.store_of(mount).lease(mount.packages)
            undo.callback(lease.close)
        found.append(lease)
    return found
