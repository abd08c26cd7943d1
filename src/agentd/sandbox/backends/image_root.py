"""An OCI image that a sandbox is to start of, whatever its wall: its user, environment, directory.

Nothing of the image is opened by a name that could lead out of its root.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from agentd.guest.zygote import image_root
from agentd.guest.zygote.root import SANDBOX_HOME
from agentd.image.oci.roots import Lease
from agentd.image.oci.store import OciStore
from agentd.image.oci.values import OciImage
from agentd.linux import inside
from agentd.model.errors import AgentdError, Conflict, InvalidInput, Refused
from agentd.model.mount import Mount
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.sandbox.backends.limits import processors
from agentd.sandbox.backends.users import parse_user

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# As whom commands of an image run, by its digest, which has that for ever.
_users: dict[str, str] = {}
_MOST_USERS = 256
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

    #: What helps where the image has no such user.
    user_fix = "say as whom, by --user: root, or a number"

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

    def ours(self, *, bare: bool = False) -> tuple[str, ...]:
        """Return the folders that lie on top of the image's root, whatever it has there."""
        return image_root.covered(bare=bare)

    def workdir(self, mounts: Iterable[Mount], *, bare: bool = False) -> str | None:
        """Return where commands begin, behind the image's links where it is to be made; None where
        the image does not say. Raises Refused for links that lead in a circle, and for a file: a
        directory there would hide it."""
        name = self.image.config.run.working_dir
        if not name:
            return None
        asked = os.path.normpath(f"/{name}").replace("//", "/")
        seen, mounted = self._seen(mounts, bare=bare)
        path = self._behind_links(asked, seen, last=True)
        covered = {*self.ours(bare=bare), *mounted}
        node: inside.Node | None = None
        for above in _each_above(path):
            if above in covered:
                return path
            node = seen(above.strip("/"))
            if node is not None and node.kind != stat.S_IFDIR:
                raise Refused(
                    f"the image {self.image.name} begins in {asked}, and {above} in it is a file",
                    remediation="mend WORKDIR of the image, or mount a directory there",
                )
        return path if node is None else asked

    def places(
        self, mounts: Iterable[Mount], workdir: str | None, *, bare: bool = False
    ) -> list[tuple[str, bool]]:
        """Tells where something is mounted, behind the image's links, and whether it is a
        directory. Raises Refused for links that lead in a circle, or a mount into another."""
        mounts = tuple(mounts)
        seen, mounted = self._seen(mounts, bare=bare)
        found = [(p, os.path.isdir(m.source)) for p, m in zip(mounted, mounts, strict=True)]
        if workdir is not None and seen(workdir.strip("/")) is None:
            found.append((workdir, True))
        return found

    def mounted(self, mounts: Iterable[Mount]) -> list[str]:
        """Return where each is, behind the image's links. Raises as ``places``."""
        return self._seen(mounts, bare=False)[1]

    def uid(self) -> int:
        """Return whom it runs as. Raises Refused for a user whom the image does not have."""
        name = self.image.config.run.user.partition(":")[0]
        if not name or name == "root":
            return 0
        named = not (name.isascii() and name.isdigit())
        number = self._number_of(name) if named else name
        what = f"the image {self.image.name} runs as {name[:80]!r}"
        if not number:
            what += ", who is not in its /etc/passwd"
            raise Refused(what, remediation=self.user_fix)
        try:
            return parse_user(number)
        except InvalidInput:
            what += f", who is number {number[:40]} in its /etc/passwd" if named else ""
            raise Refused(
                f"{what}: no user has a number so high", remediation=self.user_fix
            ) from None

    def _number_of(self, name: str) -> str:
        """Empty where the image has nobody of that name with a number."""
        for line in inside.read_small(self._root, "/etc/passwd").split("\n"):
            fields = line.split(":")
            if fields[0] == name and len(fields) > 2 and fields[2].isdecimal():
                return fields[2]
        return ""

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

    def _seen(self, mounts: Iterable[Mount], *, bare: bool) -> tuple[inside.Layered, list[str]]:
        """The root as the sandbox has it, and where in it each mount is."""
        ours = self.ours(bare=bare)
        seen = inside.Layered(self._root, ours)
        seen.add(image_root.etc_at(self._root, ours))
        places: dict[str, str] = {}
        for mount in mounts:
            path = self._behind_links(mount.target, seen, last=False)
            for other, target in places.items():
                if f"{path}/".startswith(f"{other}/") or other.startswith(f"{path}/"):
                    how = "are one place" if path == other else "lie one inside the other"
                    raise Refused(
                        f"{target} and {mount.target} {how} in the image {self.image.name}",
                        remediation="give each mount its own",
                    )
            seen.add(path)
            places[path] = mount.target
        return seen, list(places)

    def _behind_links(self, path: str, seen: inside.Layered, *, last: bool) -> str:
        try:
            return "/" + inside.behind_links(path.strip("/"), seen, last=last)
        except inside.LinkCircle as error:
            raise Refused(
                f"/{error} leads in a circle in the image {self.image.name}",
                remediation="mount it elsewhere, or mend that link in the image",
            ) from None


def _each_above(path: str) -> Iterator[str]:
    """The folders on the way to it, and itself."""
    for end, letter in enumerate(f"{path}/"):
        if letter == "/" and end:
            yield path[:end]


R = TypeVar("R", bound=ImageRoot)


def opened(spec: SandboxSpec, kind: type[R], *, kept: bool = False) -> R:
    """The caller closes it, and its lease once no sandbox of it runs. Raises as ``meant`` does."""
    store = OciStore()
    image, lease = store.leased(lambda: meant(spec, store, kept=kept))
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
