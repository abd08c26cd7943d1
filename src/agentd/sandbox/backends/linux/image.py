"""How a sandbox of the namespace wall gets an OCI image for its root."""

import contextlib
import os

import msgspec

from agentd.guest.zygote.stack import PLACES
from agentd.image.oci.store import OciStore
from agentd.linux import idmap, mounts
from agentd.model.errors import Refused, SandboxError
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.model.system import scarce
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.image_root import ImageRoot, moved, opened
from agentd.sandbox.backends.linux import kept
from agentd.sandbox.backends.linux.loans import Lender
from agentd.sandbox.backends.linux.plan import LinuxPlan, certificates
from agentd.sandbox.backends.linux.spares import ImageFiles
from agentd.sandbox.backends.linux.wall import LinuxWall

# Names of writable places, of which an image may have something (``zygote.stack``).
_LAYERED = ("w", "t", "h")


def found(spec: SandboxSpec) -> SandboxSpec:
    """Return ``spec`` with the digest of its image; one that has it is looked at as it is used.
    Raises NotFound where there is none, Refused where it is a machine image."""
    if spec.image == DEFAULT_IMAGE or spec.image_digest:
        return spec
    from agentd.image import store as machines
    from agentd.image.model import NotFound

    try:
        return msgspec.structs.replace(spec, image_digest=OciStore().digest(spec.image))
    except NotFound:
        if spec.image in machines.Store().ls():
            raise Refused(
                f"{spec.image} is a machine image, and a namespace starts of an OCI image",
                remediation="ask for --isolation microvm, or pull one: agentd image pull",
            ) from None
        raise


class LinuxImageRoot(ImageRoot):
    """The root of an image as a sandbox of this wall has it."""

    def planned(self, plan: LinuxPlan) -> LinuxPlan:
        """Fills in of a plan what the image says and the request does not. Raises Refused."""
        uid = plan.uid if plan.spec.user is not None else self.uid()
        mounted = any(mount.target == "/workspace" for mount in plan.mounts)
        return msgspec.structs.replace(
            plan,
            uid=uid,
            env=self.environment(plan.limits.cpus) | certificates(plan.table) | plan.spec.env,
            workdir=None if mounted else self.workdir(plan.mounts, bare=plan.bare),
        )

    def files(self) -> ImageFiles:
        """Tells which directory it is, once and for all: one that is unpacked anew is another."""
        found = os.fstat(self._root)
        return ImageFiles(self.image.digest, found.st_dev, found.st_ino)

    def request(self, fd: int, plan: LinuxPlan) -> dict[str, object]:
        """Return what the sandbox is told of its root; ``fd`` counts what is passed along."""
        return {
            "fd": fd,
            "places": self.places(plan.mounts, plan.workdir, bare=plan.bare),
            "writable": plan.spec.writable,
            "bare": plan.bare,
            "shown": self.shown(plan),
        }

    def shown(self, plan: LinuxPlan) -> list[str]:
        """Names the writable places where the image has something, which is to be seen there."""
        if plan.bare:
            return []
        mounted = self.mounted(plan.mounts)
        return [
            name
            for name in _LAYERED
            if PLACES[name] not in mounted and self.has_files(PLACES[name])
        ]

    def mount(self, lender: Lender, block: Block | None) -> int:
        """Makes a detached mount, read-only, its files the sandbox's user's; the caller's to close.
        Raises SandboxError."""
        try:
            if block is None or not lender.may_mount:
                return lender.clone_tree(self.lease.path, self._root, readonly=True)
            owner = os.fstat(self._root)
            userns = idmap.userns_fd(
                owner.st_uid, owner.st_gid, block.id, lender.nobodys(), its_ids=identity.SIZE
            )
            try:
                return mounts.clone_tree(self._root, readonly=True, idmap_fd=userns)
            finally:
                os.close(userns)
        except OSError as error:
            raise SandboxError(
                f"the image {self.image.name} cannot be mounted from {self.lease.path}",
                cause=f"{error.strerror}, on {_kind(self._root)}",
                remediation=scarce(error)
                or "keep images on ext4, xfs, btrfs or tmpfs: set XDG_CACHE_HOME",
            ) from error


def _kind(root: int) -> str:
    """Names the file system of an image; where no descriptor is left nobody can tell."""
    try:
        return mounts.filesystem(root)
    except OSError:
        return "a file system that cannot be told now"


def of_spec(
    spec: SandboxSpec, undo: contextlib.ExitStack, state: str | None = None
) -> LinuxImageRoot | None:
    """None without an image. ``state`` is of a snapshot, whose files are changes of its image:
    of no other. Raises NotFound, Refused, SandboxError."""
    if spec.image == DEFAULT_IMAGE:
        return None
    root = opened(spec, LinuxImageRoot, kept=state is not None)
    undo.callback(root.lease.close)
    undo.callback(root.close)
    if state is not None and kept.read_word(state, "image") != root.image.digest:
        raise moved(spec, kept.read_word(state, "image"), root.image, kept=True)
    return root


def attach(root: LinuxImageRoot | None, wall: LinuxWall) -> None:
    """Keep the image for as long as the wall stands."""
    if root is not None:
        wall.attach_image(root.image.digest, root.image.config.run.command, root.lease.close)
