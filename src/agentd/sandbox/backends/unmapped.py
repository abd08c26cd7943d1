"""Folders whose owner the sandbox's user cannot be mapped to, and what is told of them.

As root a folder is lent to a sandbox by an idmapped mount. Not every file system takes one: no
overlayfs, which every container's root is, no NFS, 9p, virtiofs and FUSE of older kernels; and
root without CAP_SYS_ADMIN makes none at all.
"""

from agentd.linux import idmap, mounts, privileges
from agentd.model.errors import Refused
from agentd.model.mount import Mount


def why(source: int) -> str:
    """Return why no idmapped mount of what ``source`` is open on can be had; empty if it can."""
    if not privileges.may_mount():
        return f"root without CAP_SYS_ADMIN cannot map owners on {mounts.filesystem(source)}"
    if idmap.works(source):
        return ""
    return f"{mounts.filesystem(source)} cannot map owners"


def refused(mount: Mount, reason: str) -> Refused:
    """Refuse it: to be written to, a folder needs its owner's rights."""
    if mount.volume:
        fix = "keep agentd's state (--state) on ext4, xfs or btrfs"
        if not privileges.may_mount():
            fix += " and give agentd CAP_SYS_ADMIN"
        return Refused(
            f"volume {mount.volume} cannot be used here: {reason}",
            cause="agentd runs as root, so commands run as a user of their own, which owns nothing",
            remediation=f"{fix}; or run agentd as an ordinary user",
        )
    volume = "keep it on a volume of ext4, xfs or btrfs"
    if not privileges.may_mount():
        volume += " and give agentd CAP_SYS_ADMIN"
    return Refused(
        f"cannot mount {mount.source} to be written: {reason}",
        cause="agentd runs as root, so commands run as a user of their own, which owns nothing",
        remediation=f"{volume}; or mount it as {mount.source}:cow and take over what changed "
        "(--apply); or run agentd as the ordinary user who owns it",
    )


def unbounded(mount: Mount) -> Refused:
    """Refuse a volume of a size of its own, which only the machine's root can mount."""
    return Refused(
        f"volume {mount.volume} has a file system of its own, which cannot be mounted here",
        cause="agentd is not root that may mount, with users for its sandboxes",
        remediation="run agentd as root, with CAP_SYS_ADMIN, or use a volume without a size",
    )
