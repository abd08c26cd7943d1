"""What a virtual machine takes from an OCI image: its disk, its user, its environment."""

import contextlib
import os
from collections.abc import Sequence

import msgspec

from agentd.guest.vm_root import SCRATCH
from agentd.guest.vm_scratch import STATE
from agentd.image.model import NotFound, Progress
from agentd.image.oci import make_disk
from agentd.image.oci.store import OciStore
from agentd.image.store import Store
from agentd.model.errors import Refused
from agentd.model.limits import Limits
from agentd.model.mount import WORKSPACE, Mount, MountMode
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.sandbox.backends.image_root import ImageRoot, opened
from agentd.sandbox.backends.users import parse_user

#: The disk's serial number, by which the guest finds it.
SERIAL = "agentd-image"


def found(spec: SandboxSpec) -> SandboxSpec:
    """Return ``spec`` with the digest of its image, where that is one of OCI rather than a machine
    image. Raises NotFound for neither."""
    if spec.image == DEFAULT_IMAGE or spec.image_digest or spec.image in Store().ls():
        return spec
    try:
        return msgspec.structs.replace(spec, image_digest=OciStore().get(spec.image).digest)
    except NotFound as error:
        raise NotFound(
            error.message,
            remediation=f"{error.remediation}; a machine image is made by agentd image build",
        ) from None


class DiskRoot(ImageRoot):
    """The root of an image as a machine has it: ``disk`` is of its file, the owner's to close."""

    disk = -1
    disk_digest = ""

    def ours(self, *, bare: bool = False) -> tuple[str, ...]:
        return (*super().ours(bare=bare), STATE)

    def open_disk(self, progress: Progress) -> None:
        """Raises Unavailable, ImageError."""
        path, record = make_disk.ensure(OciStore(), self.image, progress)
        self.disk = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.disk_digest = record.digest

    def close(self) -> None:
        super().close()
        if self.disk >= 0:
            os.close(self.disk)

    def begin(self, mounts: Sequence[Mount]) -> str | None:
        """Tells where commands begin, if not in the workspace."""
        mounted = any(mount.target == WORKSPACE for mount in mounts)
        return None if mounted else self.workdir(mounts)

    def user(self, spec: SandboxSpec) -> int:
        """Return whom commands run as. Raises Refused for a user whom the image does not have."""
        return self.uid() if spec.user is None else parse_user(spec.user)

    def request(self, spec: SandboxSpec, limits: Limits, tags: Sequence[str]) -> dict[str, object]:
        """Returns what sys.setup is told of it; ``tags`` are those of the mounts' devices."""
        workdir = self.begin(spec.mounts)
        places = self.places(spec.mounts, workdir)
        mounted = self.mounted(spec.mounts)
        shares = [
            {"tag": tag, "target": path, "readonly": mount.mode is MountMode.RO}
            for tag, mount, (path, _) in zip(tags, spec.mounts, places, strict=False)
        ]
        return {
            "disk": SERIAL,
            "writable": spec.writable,
            "places": [list(place) for place in places[len(shares) :]],
            "shares": shares,
            "shown": [path for path in SCRATCH if path not in mounted and self.has_files(path)],
            "workdir": workdir,
            "env": self.environment(limits.cpus),
        }


def of_spec(
    spec: SandboxSpec,
    undo: contextlib.ExitStack,
    closed: contextlib.ExitStack,
    progress: Progress,
    *,
    kept: bool,
) -> DiskRoot | None:
    """None where it is a machine image. The lease ends with ``undo``, descriptors with ``closed``;
    ``kept`` is a snapshot's. Raises Refused, Conflict, Unavailable, ImageError."""
    if not spec.image_digest:
        return None
    root = opened(spec, DiskRoot, kept=kept)
    undo.callback(root.lease.close)
    closed.callback(root.close)
    root.open_disk(progress)
    return root


def refuse(spec: SandboxSpec, backend: str, instead: str) -> None:
    """Raises Refused where the image is one of OCI, which ``backend`` does not take."""
    if found(spec).image_digest:
        raise Refused(
            f"backend {backend} takes machine images alone, and {spec.image} is an OCI image",
            remediation=f"use --backend {instead}, or --isolation namespace",
        )
