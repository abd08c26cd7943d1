"""What a sandbox of an OCI image takes from it: its root, its user, its environment, its directory.

Nothing of the image is opened by a name that could lead out of its root.
"""

import contextlib
import errno
import os
import stat

import msgspec

from agentd.guest.zygote.root import SANDBOX_HOME
from agentd.image.oci.roots import Lease
from agentd.image.oci.store import OciStore
from agentd.image.oci.values import OciImage, RunConfig
from agentd.linux import idmap, mounts
from agentd.linux.paths import open_inside
from agentd.model.errors import Refused, SandboxError
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux import kept
from agentd.sandbox.backends.linux.nursery import Nursery
from agentd.sandbox.backends.linux.plan import LinuxPlan, parse_user
from agentd.sandbox.backends.linux.wall import LinuxWall

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_PASSWD = 1 << 20
_MAX_LINKS = 40


def check(spec: SandboxSpec) -> None:
    """Raises NotFound where there is no such image, Refused where it is a machine image."""
    if spec.image == DEFAULT_IMAGE:
        return
    from agentd.image import store as machines
    from agentd.image.model import NotFound

    try:
        OciStore().find(spec.image)
    except NotFound:
        if spec.image in machines.Store().ls():
            raise Refused(
                f"{spec.image} is a machine image, and a namespace starts of an OCI image",
                remediation="ask for --isolation microvm, or pull one: agentd image pull",
            ) from None
        raise


def with_user(spec: SandboxSpec) -> SandboxSpec:
    """Return ``spec`` with the user whom its OCI image names, where it names none itself: who
    judges it is to see as whom commands run. Raises Refused, SandboxError."""
    if spec.image == DEFAULT_IMAGE or spec.user is not None:
        return spec
    from agentd.image.model import NotFound

    try:
        root = opened(spec.image)
    except NotFound:  # a machine's, whose commands run as its ``sandbox``; or none at all
        return spec
    with root.lease, contextlib.closing(root):
        uid = root.uid()
    return msgspec.structs.replace(spec, user="root" if uid == 0 else str(uid))


class ImageRoot:
    """The root of an image that a sandbox is to start of, in use until ``lease`` is closed."""

    def __init__(self, image: OciImage, lease: Lease) -> None:
        """Owns the lease. Raises OSError."""
        self.image = image
        self.lease = lease
        self._root = os.open(lease.path, _FOLDER | os.O_NOFOLLOW)

    def close(self) -> None:
        """The lease stays."""
        os.close(self._root)

    def planned(self, plan: LinuxPlan) -> LinuxPlan:
        """The plan with what the image says where the request says nothing. Raises Refused."""
        run = self.image.config.run
        uid = plan.uid if plan.spec.user is not None else self.uid()
        mounted = any(mount.target == "/workspace" for mount in plan.mounts)
        return msgspec.structs.replace(
            plan,
            uid=uid,
            env=_environment(run) | plan.spec.env,
            workdir=None if mounted else self._workdir(run),
        )

    def request(self, fd: int, plan: LinuxPlan) -> dict[str, object]:
        """Return what the sandbox is told of its root; ``fd`` counts what is passed along."""
        return {"fd": fd, "places": self.places(plan), "writable": plan.spec.writable}

    def places(self, plan: LinuxPlan) -> list[tuple[str, bool]]:
        """Where something is mounted, behind the image's links, and whether it is a directory."""
        wanted = [(mount.target, os.path.isdir(mount.source)) for mount in plan.mounts]
        if plan.workdir is not None and not self._is_directory(plan.workdir):
            wanted.append((plan.workdir, True))
        return [(self._behind_links(path), is_dir) for path, is_dir in wanted]

    def mount(self, nursery: Nursery, block: Block | None) -> int:
        """A detached mount, read-only, its files the sandbox's user's; the caller's to close.
        Raises SandboxError."""
        try:
            if block is None or not nursery.may_mount:
                return nursery.clone_tree(self.lease.path, self._root, readonly=True)
            owner = os.fstat(self._root)
            userns = idmap.userns_fd(
                owner.st_uid, owner.st_gid, block.id, nursery.nobodys(), its_ids=identity.SIZE
            )
            try:
                return mounts.clone_tree(self._root, readonly=True, idmap_fd=userns)
            finally:
                os.close(userns)
        except OSError as error:
            kind = mounts.filesystem(self._root)
            raise SandboxError(
                f"the image {self.image.name} cannot be mounted from {self.lease.path}",
                cause=f"{error.strerror}, on {kind}",
                remediation="keep images on ext4, xfs, btrfs or tmpfs: set XDG_CACHE_HOME",
            ) from error

    def uid(self) -> int:
        """Return whom it runs as. Raises Refused for a user whom the image does not have."""
        name = self.image.config.run.user.partition(":")[0]
        if not name or name == "root":
            return 0
        if name.isascii() and name.isdigit():
            return parse_user(name)
        for line in self._read("/etc/passwd").splitlines():
            fields = line.split(":")
            if fields[0] == name and len(fields) > 2 and fields[2].isdigit():
                return parse_user(fields[2])
        raise Refused(
            f"the image {self.image.name} runs as {name!r}, who is not in its /etc/passwd",
            remediation="say as whom, by --user: root, or a number",
        )

    def _workdir(self, run: RunConfig) -> str | None:
        path = os.path.normpath(f"/{run.working_dir}") if run.working_dir else ""
        return path.replace("//", "/") or None

    def _is_directory(self, path: str) -> bool:
        try:
            os.close(open_inside(self._root, path, _PLACE))
        except OSError:
            return False
        return True

    def _behind_links(self, path: str) -> str:
        """The path with the links on the way to its last part replaced by where they lead in the
        image; a part that is not there is what it is called. Raises Refused for a circle."""
        done: list[str] = []
        parts = path.strip("/").split("/")
        links = 0
        while len(parts) > 1:
            part = parts.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                done = done[:-1]
                continue
            target = self._link("/".join([*done, part]))
            if target is None:
                done.append(part)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise Refused(f"{path} leads in a circle in the image {self.image.name}")
            done = [] if target.startswith("/") else done
            parts = [*target.strip("/").split("/"), *parts]
        return "/" + "/".join([*done, *parts])

    def _link(self, path: str) -> str | None:
        """Where a link leads; None for what is none, or is not there."""
        try:
            fd = open_inside(self._root, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
        finally:
            os.close(fd)

    def _read(self, path: str) -> str:
        """A small plain file; empty for anything else."""
        try:
            fd = open_inside(self._root, path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EMFILE, errno.ENFILE):
                raise
            return ""
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return ""
            return file.read(_MAX_PASSWD).decode("utf-8", "replace")


def of_spec(
    spec: SandboxSpec, undo: contextlib.ExitStack, state: str | None = None
) -> ImageRoot | None:
    """None without an image. ``state`` is of a snapshot, whose files are changes of its image:
    of no other. Raises NotFound, Refused, SandboxError."""
    if spec.image == DEFAULT_IMAGE:
        return None
    root = opened(spec.image)
    undo.callback(root.lease.close)
    undo.callback(root.close)
    if state is not None and kept.read_image(state) != root.image.digest:
        raise Refused(
            f"{spec.image} is another image now than the one that the snapshot was taken of",
            cause=f"{kept.read_image(state) or 'none'}, and now {root.image.digest}",
            remediation="pull that one again under this name, or take the snapshot anew",
        )
    return root


def attach(root: ImageRoot | None, wall: LinuxWall) -> None:
    """Keep the image for as long as the wall stands."""
    if root is not None:
        wall.attach_image(root.image.digest, root.image.config.run.command, root.lease.close)


def opened(name: str) -> ImageRoot:
    """The caller closes it, and its lease once no sandbox of it runs. Raises NotFound, Corrupt."""
    store = OciStore()
    image = store.get(name)
    lease = store.lease(image)
    try:
        return ImageRoot(image, lease)
    except BaseException:
        lease.close()
        raise


def _environment(run: RunConfig) -> dict[str, str]:
    return {"HOME": SANDBOX_HOME, "LANG": "C.UTF-8", "PATH": _PATH} | run.environment()
