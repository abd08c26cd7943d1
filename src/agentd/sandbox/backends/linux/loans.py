"""How each host folder comes into a sandbox: with its owner's rights, everybody's, or as a copy."""

import contextlib
import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from agentd.linux import disk as disks
from agentd.linux import idmap, mounts, paths
from agentd.model.errors import InvalidInput
from agentd.model.mount import Mount, MountMode, check_workspace, unopened
from agentd.model.units import readable_size
from agentd.sandbox.backends import identity, unmapped
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux import copies, foreign
from agentd.sandbox.backends.linux.copies import CopySize
from agentd.sandbox.volume_lease import VolumeLease

_CALLERS = "the caller's own rights"
# Each mount beneath would need a map of its own (linux.mounts.clone_tree).
_MAPPED = "owned by the sandbox's user, idmapped, without what is mounted beneath it"


class Lender(Protocol):
    """Who makes the mounts: the nursery, or the launcher of OCI runtimes."""

    @property
    def may_mount(self) -> bool:
        """Tells whether the host itself does, as the machine's root."""

    def nobodys(self) -> range:
        """Ids that no process ever has."""

    def clone_tree(self, path: str, source: int, *, readonly: bool) -> int:
        """Makes a detached mount of ``path``, on which ``source`` is open. Raises OSError."""


class Loan(NamedTuple):
    """``source`` is a descriptor. ``unmapped`` says why its owner is not mapped to the sandbox's
    user, and is empty where it is; ``copy`` is what a copy takes, where there is one. ``lease``
    is of a volume, whose files have as many owners as a sandbox has ids."""

    mount: Mount
    source: int
    own_user: bool
    unmapped: str = ""
    copy: CopySize | None = None
    told: str = ""
    lease: VolumeLease | None = None

    @property
    def layered(self) -> bool:
        """Tells whether the copy lies over what is mounted: of what is foreign in it alone."""
        return self.copy is not None and not self.unmapped

    @property
    def mounted(self) -> bool:
        return self.copy is None or self.layered

    @property
    def readonly(self) -> bool:
        return self.mount.mode is not MountMode.RW

    @property
    def how(self) -> str:
        """For the report."""
        if not self.unmapped:
            text = _MAPPED if self.own_user else _CALLERS
            if self.copy is not None:
                whose = "groups" if self.own_user else "owners or groups"
                text += f"; {self.copy.files:,} files and folders of other {whose} are "
                text += f"copies, {readable_size(self.copy.bytes)}"
            told = self.told if self.lease is None else self.lease.bound
            return f"{text}; {told}" if told else text
        if self.copy is not None:
            files, size = self.copy.files, readable_size(self.copy.bytes)
            text = f"a copy of {files:,} files, {size}, owned by the sandbox's user"
            if self.copy.left_out:
                text += f"; {self.copy.left_out:,} that its owner may not read are left out"
            return f"{text}: {self.unmapped}"
        return f"as everybody may read it: {self.unmapped}"


def open_source(mount: Mount, undo: contextlib.ExitStack) -> int:
    """Looks once at the path: all that is done with the mount is done with what this found.

    Raises InvalidInput.
    """
    try:
        fd = paths.open_plain(mount.source)
    except OSError as error:
        raise unopened(mount, error) from error
    undo.callback(os.close, fd)
    check_workspace(mount, directory=os.path.isdir(fd))
    return fd


def all_of(
    mounted: Sequence[Mount],
    sources: Sequence[int],
    leases: Sequence[VolumeLease | None],
    lender: Lender,
    disk: int,
    *,
    own_user: bool,
) -> list[Loan]:
    """Does ``of`` for each mount. Raises as it does."""
    found = []
    for mount, source, lease in zip(mounted, sources, leases, strict=True):
        if lease is not None and lease.image:
            if not (own_user and lender.may_mount):
                raise unmapped.unbounded(mount)
            found.append(Loan(mount, source, own_user, lease=lease))
            continue
        try:
            loan = of(mount, source, lender, disk, own_user=own_user)
        except OSError as error:
            raise unopened(mount, error) from error
        found.append(loan._replace(lease=lease))
    return found


def of(mount: Mount, source: int, lender: Lender, disk: int, *, own_user: bool) -> Loan:
    """Raises Refused for what cannot be written, InvalidInput for what is too large to copy."""
    reason = unmapped.why(source) if own_user else ""
    if not reason and mount.mode is MountMode.COW:
        found = foreign.look(source, disk, os.fstat(source) if own_user else None)
        return Loan(mount, source, own_user, copy=found.copy, told=found.told)
    if not reason:
        return Loan(mount, source, own_user)
    if mount.mode is MountMode.RW or mount.volume:
        raise unmapped.refused(mount, reason)
    size, over = copies.measure(mount, source, disk)
    if mount.mode is MountMode.RO and size.open_to_all and _reached(mount, source, lender):
        return Loan(mount, source, own_user, reason)
    if over:
        raise InvalidInput(
            f"cannot mount {mount.source}: {reason}, so it would be copied, and it has {over}",
            remediation="mount a part of it, or raise --disk; or keep it on ext4, xfs or btrfs; or "
            "run agentd as the ordinary user who owns it",
        )
    return Loan(mount, source, own_user, reason, size)


def _reached(mount: Mount, source: int, lender: Lender) -> bool:
    """Return whether the one who mounts may go there: without CAP_SYS_ADMIN the zygote's user."""
    if lender.may_mount:
        return True
    try:
        os.close(lender.clone_tree(mount.source, source, readonly=True))
    except OSError:
        return False
    return True


def copy_all(lent: list[Loan], scratch: int, user: int | None) -> None:
    """Copies all to the tmpfs of a sandbox whose user is ``user`` outside. Raises InvalidInput."""
    for index, loan in enumerate(lent):
        if loan.layered:
            try:
                owner = os.fstat(loan.source) if loan.own_user else None
                foreign.make(loan.source, scratch, name(index), owner, user)
            except OSError as error:
                raise copies.failed(loan.mount, error) from error
        elif loan.copy is not None:
            copies.make(loan.mount, loan.source, scratch, name(index), user)


def name(index: int) -> str:
    """Returns what a copy is called on the scratch tmpfs."""
    return f"c{index}"


def requests(lent: list[Loan]) -> list[dict[str, object]]:
    """Return what the sandbox is told of its mounts: descriptors count from 1, ``copy`` is a name
    on its scratch tmpfs."""
    found: list[dict[str, object]] = []
    fd = 0
    for index, loan in enumerate(lent):
        fd += loan.mounted
        found.append({
            "target": loan.mount.target,
            "fd": fd if loan.mounted else None,
            "copy": None if loan.copy is None else name(index),
            "ro": loan.mount.mode is MountMode.RO,
            "is_dir": paths.is_folder(loan.source),
        })  # fmt: skip
    return found


def mount_fd(loan: Loan, lender: Lender, block: Block | None) -> int:
    """Makes a detached mount of what is lent, owned inside by the sandbox's user where it is
    mapped.

    Raises InvalidInput.
    """
    try:
        if block is None or not lender.may_mount:
            return lender.clone_tree(loan.mount.source, loan.source, readonly=loan.readonly)
        if loan.unmapped:
            return mounts.clone_tree(loan.source, readonly=True, recursive=False)
        userns = _userns(loan, lender, block)
        try:
            if loan.lease is not None and loan.lease.image:
                return disks.mount(loan.lease.image, readonly=loan.readonly, userns_fd=userns)
            return mounts.clone_tree(loan.source, readonly=loan.readonly, idmap_fd=userns)
        finally:
            os.close(userns)
    except OSError as error:
        raise unopened(loan.mount, error) from error


def _userns(loan: Loan, lender: Lender, block: Block) -> int:
    """A user namespace with the map of its mount. Raises OSError."""
    first = None if loan.lease is None else loan.lease.first_id
    if first is not None:
        ids = f"{first} {block.id} {identity.SIZE}"
        return idmap.namespace(ids, ids)
    owner = os.fstat(loan.source)
    return idmap.userns_fd(
        owner.st_uid, owner.st_gid, block.id, lender.nobodys(), its_ids=identity.SIZE
    )
