"""Host directories in the guest: one virtiofsd a directory, shut in with it.

It does there what the directory's owner may, and the guest's user stands for the owner. As root
it is a user that owns nothing, to whom an idmapped mount of the one directory lends the owner's
rights; else it is the caller. Landlock keeps it to that directory.
"""

import errno
import os
import shutil
import stat
from typing import NamedTuple

from agentd.linux import disk, idmap, mounts, paths
from agentd.model.errors import Refused
from agentd.model.mount import Mount, MountMode, check_workspace, unmountable, unopened
from agentd.sandbox.backends import unmapped
from agentd.sandbox.backends.vm.confine import STAGE
from agentd.sandbox.volume_lease import VolumeLease

# Debian's place, which is on no PATH.
_PATH = "/usr/libexec:/usr/lib/qemu:/usr/lib:" + os.defpath

_CHECK = "that it is a directory"


class Share(NamedTuple):
    """A directory that is open: ``fd`` is the caller's to close. ``uid`` and ``gid`` own it.

    ``detached``: ``fd`` is a mount of its own, which no path leads to.
    """

    tag: str
    fd: int
    uid: int
    gid: int
    mount: Mount
    detached: bool
    how: str = "as its owner"

    @property
    def readonly(self) -> bool:
        return self.mount.mode is MountMode.RO


def program() -> str:
    """Raises Refused where there is none."""
    found = shutil.which("virtiofsd", path=_PATH)
    if found is None:
        raise Refused(
            "backend qemu cannot mount: virtiofsd is not installed",
            remediation="apt-get install virtiofsd",
        )
    return found


def check_source(mount: Mount) -> None:
    """Before anything is booted. Raises InvalidInput for what is no directory: all others are
    opened later, and may be gone by then."""
    try:
        is_dir = stat.S_ISDIR(os.stat(mount.source).st_mode)
    except OSError as error:
        raise unopened(mount, error, _CHECK) from error
    check_workspace(mount, directory=is_dir)
    if not is_dir:
        raise unmountable(mount, os.strerror(errno.ENOTDIR), _CHECK)


def open_share(
    mount: Mount, index: int, lent_to: int | None, lease: VolumeLease | None = None
) -> Share:
    """``lent_to`` is the user that gets the owner's rights there; None without root. ``lease`` is
    of a volume, and says who owns that.

    Raises InvalidInput for what is no directory that the caller may read.
    """
    try:
        fd = _open(mount.source)
        owner = os.fstat(fd)
        how = "as its owner" if lease is None else f"as its owner; {lease.bound}"
        if lent_to is None:
            if lease is not None and lease.image:
                os.close(fd)
                raise unmapped.unbounded(mount)
            return Share(f"share{index}", fd, owner.st_uid, owner.st_gid, mount, False, how)
        try:
            if lease is not None and lease.first_id is not None:
                return _lent_volume(mount, index, fd, lease, lent_to)._replace(how=how)
            return _lent(mount, index, fd, (owner.st_uid, owner.st_gid), lent_to)
        finally:
            os.close(fd)
    except OSError as error:
        raise unopened(mount, error, _CHECK) from error


def _open(source: str) -> int:
    found = paths.open_plain(source)
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)
    finally:
        os.close(found)


def _lent(mount: Mount, index: int, fd: int, owners: tuple[int, int], lent_to: int) -> Share:
    if reason := unmapped.why(fd):
        return _as_everybody(mount, index, fd, lent_to, reason)
    userns = idmap.userns_fd(*owners, lent_to)
    try:
        tree = mounts.clone_tree(fd, readonly=mount.mode is MountMode.RO, idmap_fd=userns)
    finally:
        os.close(userns)
    return Share(f"share{index}", tree, lent_to, lent_to, mount, True)


def _lent_volume(mount: Mount, index: int, fd: int, lease: VolumeLease, lent_to: int) -> Share:
    first = lease.first_id or 0
    if not lease.image:
        return _lent(mount, index, fd, (first, first), lent_to)
    userns = idmap.userns_fd(first, first, lent_to)
    try:
        readonly = mount.mode is MountMode.RO
        tree = disk.mount(lease.image, readonly=readonly, userns_fd=userns)
    finally:
        os.close(userns)
    return Share(f"share{index}", tree, lent_to, lent_to, mount, True)


def _as_everybody(mount: Mount, index: int, fd: int, lent_to: int, reason: str) -> Share:
    """Share what everybody may read, where the owner's rights cannot be lent."""
    if mount.mode is not MountMode.RO or mount.volume:
        raise unmapped.refused(mount, reason)
    if os.fstat(fd).st_mode & 0o5 != 0o5:
        raise Refused(
            f"cannot mount {mount.source}: {reason}, and not everybody may read it",
            remediation=f"chmod o+rx {mount.source}, or use --isolation namespace, which copies it",
        )
    tree = mounts.clone_tree(fd, readonly=True, recursive=False)
    how = f"as everybody may read it: {reason}"
    return Share(f"share{index}", tree, lent_to, lent_to, mount, True, how)


def command(path: str, share: Share, guest_uid: int) -> list[str]:
    """``{listener}`` stands for the number of a descriptor."""
    words = [
        path,
        "--fd={listener}",
        # Not by its descriptor: virtiofsd resolves that, and a detached mount's path is "/".
        f"--shared-dir={STAGE if share.detached else share.mount.source}",
        "--sandbox=none",  # we have done it already, and it has no right to
        "--seccomp=kill",
        "--inode-file-handles=never",
        "--no-announce-submounts",
        "--rlimit-nofile=0",
        "--cache=auto",
        f"--translate-uid=map:{guest_uid}:{share.uid}:1",
        f"--translate-gid=map:{guest_uid}:{share.gid}:1",
    ]
    return [*words, "--readonly"] if share.readonly else words


def mount_command(share: Share) -> tuple[str, ...]:
    """Return the command that mounts it in the guest, as root."""
    options = "nosuid,nodev" + (",ro" if share.readonly else "")
    script = 'mkdir -p "$2" && exec mount -t virtiofs -o "$3" "$1" "$2"'
    return ("sh", "-c", script, "sh", share.tag, share.mount.target, options)
