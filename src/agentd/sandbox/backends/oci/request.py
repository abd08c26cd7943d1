"""What a launcher is asked for: a plan, with what the host lends, in the words of ``bundle``."""

import os
from collections.abc import Iterator, Sequence

import msgspec

from agentd.linux import paths
from agentd.linux.cgroup import Group
from agentd.model.spec import DEFAULT_IMAGE
from agentd.sandbox.backends import configuration, identity, shared
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux import kept as keeping
from agentd.sandbox.backends.linux import loans, restoring
from agentd.sandbox.backends.linux.born import room, scratch
from agentd.sandbox.backends.linux.image import LinuxImageRoot
from agentd.sandbox.backends.linux.loans import Loan
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.linux.reserving import reserve
from agentd.sandbox.backends.linux.shared_layer import SharedLayer
from agentd.sandbox.backends.oci import bundle, config
from agentd.sandbox.backends.oci.starting import Launcher
from agentd.sandbox.volume_lease import VolumeLease


class Lent(msgspec.Struct, frozen=True):
    """What a sandbox gets of the host's: folders, and its image."""

    loans: list[Loan]
    places: list[tuple[str, bool]]  # where each is mounted, then others that an image lacks
    image: LinuxImageRoot | None
    shared: SharedLayer | None  # of a fork

    @property
    def copied(self) -> bool:
        """Whether the host writes to its disk before it starts."""
        return any(loan.copy is not None for loan in self.loans)

    def opened(self, launcher: Launcher, block: Block | None) -> Iterator[int]:
        """Yield what is passed along, in order: each the caller's to close. Raises SandboxError."""
        for loan in self.loans:
            if loan.mounted:
                yield loans.mount_fd(loan, launcher, block)
        if self.image is not None:
            yield self.image.mount(launcher, block)
        if self.shared is not None:
            yield self.shared.lend(block)

    def fill(
        self, disk: int, user: int | None, kept: str | None, launcher: Launcher, group: Group | None
    ) -> None:
        """Put there what its sandbox begins with: of a snapshot, ``kept``, which counts as its
        memory, and what is copied."""
        if kept is not None and keeping.has_files(kept):
            with reserve(launcher, group) as counted:
                restoring.restore(kept, disk, user, counted)
        loans.copy_all(self.loans, disk, user)

    def shown(self, plan: LinuxPlan) -> list[str]:
        """Names of the writable places at which the image has something."""
        return [] if self.image is None else self.image.shown(plan)

    def mounts(self, plan: LinuxPlan) -> list[tuple[str, str, bool]]:
        """Source, as the builder has it, target, and whether it is read-only."""
        found = []
        for index, (loan, (target, _)) in enumerate(zip(self.loans, self.places, strict=False)):
            if index == 0 and plan.cow:
                found.append((bundle.COW, target, False))
            elif loan.mounted:
                found.append((f"{bundle.MOUNTS}/{index}", target, loan.readonly))
            else:
                found.append((f"{bundle.SCRATCH}/{loans.name(index)}", target, True))
        return found


def lend(
    plan: LinuxPlan,
    sources: Sequence[int],
    leases: Sequence[VolumeLease | None],
    launcher: Launcher,
    image: LinuxImageRoot | None,
    layer: SharedLayer | None = None,
) -> Lent:
    """Raises InvalidInput, Refused for a folder that cannot be lent, SandboxError."""
    found = loans.all_of(
        plan.mounts, sources, leases, launcher, plan.limits.disk or 0, own_user=launcher.own_users
    )
    if image is not None:
        return Lent(found, image.places(plan.mounts, plan.workdir), image, layer)
    return Lent(found, [(m.target, os.path.isdir(m.source)) for m in plan.mounts], None, layer)


def of_plan(
    plan: LinuxPlan,
    lent: Lent,
    block: Block | None,
    argv: Sequence[str],
    *,
    kept: bool,
    seconds: float,
) -> dict[str, object]:
    """The request, without ``op``, ``config`` and ``agent``. ``argv`` is the runtime's, which may
    take ``seconds``; ``kept``: the host puts files on its disk first."""
    disk = scratch(room(plan, lent.loans), lent.shared)
    image = None
    if lent.image is not None:
        image = lent.image.request(0, plan)
        image |= {"places": lent.places}
    return {
        "maps": maps(plan.uid, block),
        "owner": None if block is None else block.id,
        "net": plan.spec.net,
        "authority": None if plan.authority is None else plan.authority.certificate,
        "device": False,
        "configuration": configuration.trees(plan.spec.configuration),
        "hidden": plan.spec.configuration.hide,
        "image": image,
        "argv": argv,
        "seconds": seconds,
        "filter": "",
        **disk,
        "stack": [],
        "shared": lent.shared is not None,
        "uid": plan.uid if block is not None else 0,
        "folders": [(name, mode) for name, _, mode in config.scratch(plan.spec)],
        "user_counts": shared.user_counts(),
        "lend": kept or lent.copied,
        "cow": plan.cow,
        "cow_copies": [loans.name(0)] if plan.cow and lent.loans[0].copy is not None else [],
        "mounts": [
            (str(n), paths.is_folder(loan.source), loan.mounted)
            for n, loan in enumerate(lent.loans)
        ],
    }


def stacked(plan: LinuxPlan, lent: Lent) -> list[str]:
    """Names of the writable places of which a fork may share what is there: nothing else is over or
    below it."""
    special = plan.cow or plan.mounts or plan.spec.writable or lent.shared or lent.shown(plan)
    return [] if special else [name for name, _, _ in config.scratch(plan.spec)]


def maps(uid: int, block: Block | None) -> list[tuple[int, int, int]]:
    """Ids inside, and what they are outside. The sandbox's user is the first of its block: folders
    are lent to that one. Root of the namespace, if another, is whom the runtime alone runs as."""
    if block is None:
        return [(0, 0, 1)]
    if uid == 0:
        return [(0, block.id, identity.SIZE)]
    return [(0, block.id + 1, 1), (uid, block.id, 1)]


def needed(plan: LinuxPlan, block: Block | None) -> tuple[str, ...]:
    """The limits that nothing but a group can hold; root may become others, and processes are
    counted by user otherwise."""
    everyone = plan.uid == 0 and block is not None
    return ("memory", "cpus", "pids") if everyone else ("memory", "cpus")


def has_image(plan: LinuxPlan) -> bool:
    return plan.spec.image != DEFAULT_IMAGE
