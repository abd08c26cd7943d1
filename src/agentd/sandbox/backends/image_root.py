"""An OCI image that a sandbox is to start of, whatever its wall: its user, environment, directory.

Nothing of the image is opened by a name that could lead out of its root.
"""

import contextlib
import functools
import os
import stat
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from agentd.guest.zygote.root import SANDBOX_HOME
from agentd.image.oci.roots import Lease
from agentd.image.oci.store import OciStore
from agentd.image.oci.values import OciImage
from agentd.linux import inside
from agentd.linux.paths import open_inside
from agentd.model.errors import AgentdError, Conflict, Refused
from agentd.model.mount import Mount
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.sandbox.backends.limits import processors
from agentd.sandbox.backends.users import parse_user

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# As whom commands of an image run, by its digest, which has that for ever.
_users: dict[str, str] = {}
_MOST_USERS = 256
# What the image has there is not to be seen.
_COVERED = ("/dev", "/proc", "/sys", "/tmp", "/workspace", SANDBOX_HOME)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def resolved(spec: SandboxSpec, *, kept: bool = False) -> SandboxSpec:
    """Return ``spec`` with its OCI image's digest, and the user whom that names where it names none
    itself: who judges it is to see what is used, and as whom commands run. ``kept`` is a
    snapshot's. Raises Refused, Conflict, SandboxError."""
    if spec.image == DEFAULT_IMAGE:
        return spec
    from agentd.image.model import NotFound

    try:
        digest = "" if kept or spec.image_digest else OciStore().digest(spec.image)
        if digest in _users:
            known = spec.user or _users[digest]
            return msgspec.structs.replace(spec, user=known, image_digest=digest)
        root = opened(spec, ImageRoot, kept=kept)
    except NotFound:  # a machine's, whose commands run as its ``sandbox``; or none at all
        return spec
    with root.lease, contextlib.closing(root):
        uid = root.uid() if spec.user is None else None
    user = spec.user if uid is None else "root" if uid == 0 else str(uid)
    if uid is not None and user is not None:
        if len(_users) >= _MOST_USERS:
            _users.clear()
        _users[root.image.digest] = user
    return msgspec.structs.replace(spec, user=user, image_digest=root.image.digest)


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

    def environment(self, cpus: float | None) -> dict[str, str]:
        """Return what a command starts with where nobody says otherwise, ``cpus`` its limit."""
        usual = {"HOME": SANDBOX_HOME, "LANG": "C.UTF-8", "PATH": _PATH} | processors(cpus)
        return usual | self.image.config.run.environment()

    def workdir(self) -> str | None:
        """Return where commands begin; None where the image does not say."""
        name = self.image.config.run.working_dir
        path = os.path.normpath(f"/{name}") if name else ""
        return path.replace("//", "/") or None

    def places(self, mounts: Iterable[Mount], workdir: str | None) -> list[tuple[str, bool]]:
        """Tells where something is mounted, behind the image's links, and whether it is a
        directory. Raises Refused for links that lead in a circle, and for a file where commands
        are to begin: a directory there would hide it."""
        wanted = [(mount.target, os.path.isdir(mount.source)) for mount in mounts]
        if workdir is not None and not self._is_directory(workdir):
            self._refuse_file(workdir, [target for target, _ in wanted])
            wanted.append((workdir, True))
        try:
            return [(self._behind_links(path), is_dir) for path, is_dir in wanted]
        except inside.LinkCircle as error:
            raise Refused(
                f"/{error} leads in a circle in the image {self.image.name}",
                remediation="mount it elsewhere, or mend that link in the image",
            ) from None

    def uid(self) -> int:
        """Return whom it runs as. Raises Refused for a user whom the image does not have."""
        name = self.image.config.run.user.partition(":")[0]
        if not name or name == "root":
            return 0
        if name.isascii() and name.isdigit():
            return parse_user(name)
        for line in inside.read_small(self._root, "/etc/passwd").splitlines():
            fields = line.split(":")
            if fields[0] == name and len(fields) > 2 and fields[2].isdigit():
                return parse_user(fields[2])
        raise Refused(
            f"the image {self.image.name} runs as {name!r}, who is not in its /etc/passwd",
            remediation="say as whom, by --user: root, or a number",
        )

    def has_files(self, path: str) -> bool:
        """Return whether a directory is right there, no link, with anything in it."""
        parts = path.strip("/").split("/")
        fd = os.dup(self._root)
        try:
            for part in parts:
                inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = inner
            with os.scandir(fd) as entries:
                return next(entries, None) is not None
        except OSError:
            return False
        finally:
            os.close(fd)

    def _refuse_file(self, workdir: str, mounted: Iterable[str]) -> None:
        covered = {*_COVERED, *mounted}
        above = [workdir[:end] for end, letter in enumerate(workdir) if letter == "/" and end]
        for path in (*above, workdir):
            if path in covered:
                return
            try:
                fd = open_inside(self._root, path, os.O_PATH)
            except OSError:  # it is not there
                continue
            kind = os.fstat(fd).st_mode
            os.close(fd)
            if not stat.S_ISDIR(kind):
                raise Refused(
                    f"the image {self.image.name} begins in {workdir}, and {path} in it is a file",
                    remediation="mend WORKDIR of the image, or mount a directory there",
                )

    def _is_directory(self, path: str) -> bool:
        try:
            os.close(open_inside(self._root, path, _PLACE))
        except OSError:
            return False
        return True

    def _behind_links(self, path: str) -> str:
        find = functools.partial(inside.node_at, self._root)
        return "/" + inside.behind_links(path.strip("/"), find, last=False)


R = TypeVar("R", bound=ImageRoot)


def opened(spec: SandboxSpec, kind: type[R], *, kept: bool = False) -> R:
    """The caller closes it, and its lease once no sandbox of it runs. Raises as ``meant`` does."""
    store = OciStore()
    image = meant(spec, store, kept=kept)
    lease = store.lease(image)
    try:
        return kind(image, lease)
    except BaseException:
        lease.close()
        raise


def meant(spec: SandboxSpec, store: OciStore, *, kept: bool = False) -> OciImage:
    """Return the image of the spec's digest, once it has one: its name may mean another by now.
    Raises NotFound, Corrupt, and as ``moved`` says where the one with the digest is gone."""
    from agentd.image.model import NotFound

    if spec.image_digest:
        with contextlib.suppress(NotFound):
            image = store.get(spec.image)  # as a rule; to look for a digest takes longer
            if image.digest == spec.image_digest:
                return image
        with contextlib.suppress(NotFound):
            return store.get(spec.image_digest)
    image = store.get(spec.image)
    if spec.image_digest and image.digest != spec.image_digest:
        raise moved(spec, spec.image_digest, image, kept=kept)
    return image


def moved(spec: SandboxSpec, wanted: str, image: OciImage, *, kept: bool) -> AgentdError:
    """Refused of a snapshot (``kept``), whose caller can mend it; else Conflict: it just moved."""
    what = f"{spec.image} is another image now than the one that"
    cause = f"{wanted or 'none'}, and now {image.digest}"
    if kept:
        fix = "pull that one again under this name, or take the snapshot anew"
        return Refused(f"{what} the snapshot was taken of", cause=cause, remediation=fix)
    return Conflict(f"{what} was decided on", cause=cause, remediation="ask again")
