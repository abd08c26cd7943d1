"""A sandbox that was just born, by its host: what it was given, and what it takes along."""

import contextlib
import os
import socket
from collections.abc import Callable
from typing import NamedTuple

from agentd.linux import cgroup
from agentd.model.units import readable_size
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.cgroups import let_in, make_group
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux.disk import Coming, SandboxDisk
from agentd.sandbox.backends.linux.loans import Loan
from agentd.sandbox.backends.linux.nursery import Nursery
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.linux.shared_layer import FileIds, SharedLayer, Taken
from agentd.sandbox.backends.linux.spares import Spare, SpareKind


class Born(NamedTuple):
    """``fds``: its pidfd, and its scratch tmpfs where the host needs that, too."""

    fds: list[int]
    listener: socket.socket
    block: Block | None
    group: cgroup.Group | None
    detail: str  # why there is no group
    #: The layer below its disk, in a fork.
    shared: SharedLayer | None = None
    #: Whether its disk is a file system of the zygote's namespace, and not of its own.
    copied: bool = False


Ask = Callable[[socket.socket, Block | None], None]


def take_spare(nursery: Nursery, kind: SpareKind, undo: contextlib.ExitStack) -> Spare | None:
    """Takes the clone that was made ahead, if there is one; ``undo`` frees it."""
    spare = nursery.take_spare(kind)
    if spare is not None:
        undo.callback(release, spare.block)
        undo.callback(spare.close)
    return spare


def from_spare(
    spare: Spare,
    nursery: Nursery,
    plan: LinuxPlan,
    ask: Ask,
    ask_next: Callable[[], None],
    undo: contextlib.ExitStack,
) -> Born:
    """Makes a sandbox out of the clone that was made ahead."""
    try:
        ask(spare.listener, spare.block)
        group, detail = let_into_group(plan, spare.listener, nursery, undo)
    finally:
        # Not before: the zygote would wake up on the core that we need.
        ask_next()
    return Born([spare.pidfd], spare.listener, spare.block, group, detail)


def release(block: Block | None, ended: bool = False) -> None:
    """Without ``ended`` a clone of it may live on for a moment: a look at all processes tells."""
    if block is not None:
        block.release(ended)


def let_into_group(
    plan: LinuxPlan, listener: socket.socket, nursery: Nursery, undo: contextlib.ExitStack
) -> tuple[cgroup.Group | None, str]:
    group, detail = group_of(plan, nursery, undo)
    let_in(listener, group)
    return group, detail


def group_of(
    plan: LinuxPlan, nursery: Nursery, undo: contextlib.ExitStack
) -> tuple[cgroup.Group | None, str]:
    """Returns the sandbox's group, in which nothing is yet, or why there is none."""
    # What else counts processes counts each user's, and root may become others.
    needed = ("memory", "cpus", "pids") if has_range(plan, nursery) else ("memory", "cpus")
    group, detail = make_group(plan.spec.limits, plan.limits, needed)
    if group is not None:
        undo.callback(group.remove)
    return group, detail


def room(plan: LinuxPlan, lent: list[Loan]) -> Taken:
    """Of its disk: copies lie beside what the limits allow."""
    copied = [loan.copy for loan in lent if loan.copy is not None]
    return Taken(
        (plan.limits.disk or 0) + sum(size.bytes for size in copied),
        plan.inodes + sum(size.files for size in copied),
    )


def uncounted(shared: SharedLayer | None, lent: list[Loan]) -> list[str]:
    """Tells what is on its disk and no memory of its group's: others' processes wrote it."""
    copied = sum(loan.copy.bytes for loan in lent if loan.copy is not None)
    told = [f"{readable_size(copied)} of copied folders"] if copied else []
    if shared is not None:
        told.append(f"{readable_size(shared.taken.size)} of files that it shares")
    return told


def scratch(wanted: Taken, shared: SharedLayer | None) -> dict[str, object]:
    """Sizes the tmpfs that the host writes to first, with the room that a shared layer leaves."""
    used, files = shared.taken if shared is not None else (0, 0)
    return {"disk": wanted.size - used, "inodes": wanted.files - files}


def disk_of(
    fds: list[int], born: Born, plan: LinuxPlan, lent: list[Loan], nursery: Nursery
) -> SandboxDisk | None:
    """``fds`` are what the sandbox has passed of it: owned by what is returned."""
    if not fds:
        if born.shared is not None:
            born.shared.close()
        return None
    fd, *rest = fds
    wanted = room(plan, lent)
    if not rest:
        return SandboxDisk(fd, wanted, born.shared)
    (namespace,) = rest
    if born.block is not None and not nursery.may_mount:  # for whose ids else could it be shown
        os.close(namespace)
        return SandboxDisk(fd, wanted)
    first = born.block.id if born.block is not None and born.copied else plan.uid
    ids = FileIds(first, identity.SIZE if plan.uid == 0 else 1)
    coming = Coming((namespace,), nursery, ids, foreign=nursery.subids is not None)
    return SandboxDisk(fd, wanted, coming=coming)


def has_range(plan: LinuxPlan, nursery: Nursery) -> bool:
    """Return whether root inside can become others."""
    return plan.uid == 0 and (identity.available() or nursery.subids is not None)
