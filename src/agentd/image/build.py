"""Builds images, and rebuilds those whose agent or packages have changed."""

import contextlib
import os
from collections.abc import Callable
from typing import Protocol

from agentd.guest import bundle
from agentd.image import cpio, disk, kernel, userland
from agentd.image.debian import Base, Debian, recipe
from agentd.image.digest import of_parts
from agentd.image.model import (
    BASES,
    EROFS,
    EXT4,
    FORMAT,
    INITRAMFS,
    KERNEL,
    OWN,
    Corrupt,
    Image,
    ImageManifest,
    NotFound,
    Progress,
)
from agentd.image.own import OwnFiles
from agentd.image.packages import Package, lists_stamp
from agentd.image.store import Store, check_name, describe, total
from agentd.image.tree import ImageTree
from agentd.model.errors import InvalidInput, Unavailable

ROUGH_SIZE = "about 260 MB"  # of the default one on disk
_STEPS = 8
_LISTS = "lists"

DEFAULT = "default"


class PackageSource(Protocol):
    """A source of packages for a base; ``Debian`` is one."""

    def packages(self) -> dict[str, Package]: ...
    def make(self, say: Callable[[str], None]) -> Base: ...


def build(
    name: str = "default",
    base: str = "debian",
    progress: Progress | None = None,
    *,
    kernel: str | None = None,
    initramfs: str | None = None,
    rootfs: str | None = None,
    store: Store | None = None,
    source: PackageSource | None = None,
) -> Image:
    """Build the image, whatever is there. ``kernel`` and the others are paths of the user's own
    files, which take the place of ours.

    Raises Unavailable (what is missing here, and the fix), InvalidInput, ImageError.
    """
    if base not in BASES:
        raise InvalidInput(f"no base {base!r}", remediation=f"use one of: {', '.join(BASES)}")
    check_name(name)
    store = store or Store()
    own = OwnFiles(kernel, initramfs, rootfs)
    with store.locked():
        return _Build(store, name, base, own, source, progress).run()


def ensure(
    name: str = "default",
    progress: Progress | None = None,
    *,
    store: Store | None = None,
    source: PackageSource | None = None,
) -> Image:
    """Return the image, built first if it is missing, damaged, or older than what it is made from.

    Raises as ``build`` does; NotFound for a name other than ``default``.
    """
    store = store or Store()
    if image := _current(store, name, source):
        return image
    if progress is not None:
        progress(f"note: {_why_now(store, name)}", 0, _STEPS)
    with store.locked():
        # Another process may have built it meanwhile.
        if image := _current(store, name, source):
            return image
        return _rebuild(store, name, progress, source)


def _why_now(store: Store, name: str) -> str:
    """Return what a build that nobody asked for by name costs, and where."""
    what = "is out of date" if name in store.ls() else "is not built yet"
    return (
        f"the image {name} {what}: building it from packages, {ROUGH_SIZE} in {store.folder} "
        "(agentd image build does that ahead of time)"
    )


def rebuild(
    name: str = "default",
    progress: Progress | None = None,
    *,
    store: Store | None = None,
    source: PackageSource | None = None,
) -> Image:
    """Build the image once more, from what it was built from. Raises as ``ensure`` does."""
    store = store or Store()
    with store.locked():
        return _rebuild(store, name, progress, source)


def _rebuild(
    store: Store, name: str, progress: Progress | None, source: PackageSource | None
) -> Image:
    base, own = _recorded(store, name)
    return _Build(store, name, base, own, source, progress).run()


def _current(store: Store, name: str, source: PackageSource | None) -> Image | None:
    try:
        if is_stale(store, name, source):
            return None
        return store.get(name)
    except Corrupt:
        return None
    except NotFound:
        if name != DEFAULT:
            raise
        return None


def is_stale(store: Store, name: str, source: PackageSource | None = None) -> bool:
    """Return whether what the image is made from has changed. Raises NotFound, Corrupt."""
    folder, manifest = store.manifest(name)
    if manifest.base == OWN:
        return False
    if INITRAMFS not in manifest.own and manifest.agent != agent_digest(bundle.sources()):
        return True
    if manifest.recipe != recipe():
        return True
    stamp = lists_stamp()
    if not stamp or _read(os.path.join(folder, _LISTS)) == stamp:
        return False
    try:
        own_kernel = KERNEL in manifest.own
        found = (source or _debian(store, manifest.base, own_kernel=own_kernel)).packages()
    except Unavailable:
        return False  # what is there is sound, and nothing newer can be had
    if _key(found) != manifest.base_key:
        return True
    with contextlib.suppress(OSError):  # another user's store: it is looked up each time
        _write(os.path.join(folder, _LISTS), stamp)
    return False


def agent_digest(sources: dict[str, bytes]) -> str:
    return of_parts(sources)


class _Build:
    """A build of an image, under the store's lock."""

    def __init__(
        self,
        store: Store,
        name: str,
        base: str,
        own: OwnFiles,
        source: PackageSource | None,
        progress: Progress | None,
    ) -> None:
        self._store, self._name, self._base, self._own = store, name, base, own
        self._source = source or _debian(store, base, own_kernel=own.kernel is not None)
        self._progress = progress or (lambda what, done, steps: None)
        self._done = 0
        self._notes: list[str] = []

    def run(self) -> Image:
        try:
            return self._run()
        except OSError as error:
            raise Unavailable(
                f"the image cannot be built: {error.filename or 'a file'}: {error.strerror}",
                remediation="see that there is room, and that you may write there",
            ) from error

    def _run(self) -> Image:
        with self._store.temporary() as folder:
            self._own.copy(folder)
            complete = self._own.complete
            manifest = self._own_manifest(folder) if complete else self._made(folder)
            self._say("publishing")
            self._store.publish(self._name, folder, manifest)
        return self._store.get(self._name)

    def _made(self, folder: str) -> ImageManifest:
        self._say("looking up packages")
        stamp = lists_stamp()
        found = self._source.packages()
        base = self._source.make(self._say)
        release = self._write_kernel(folder, base)
        sources = bundle.sources()
        self._say("the agent")
        agent = base.agent(sources)
        agent.update(self._init(base))
        if self._own.kernel is None:
            agent.update(base.modules)
        if self._own.initramfs is None:
            self._say("initramfs")
            small = base.small
            small.update(agent)
            _write_bytes(os.path.join(folder, INITRAMFS), cpio.write(small))
        if self._own.rootfs is None:
            self._write_disks(folder, base, agent)
        _write(os.path.join(folder, _LISTS), stamp)
        files = describe(folder, [KERNEL, INITRAMFS, EXT4, EROFS])
        return ImageManifest(
            format=FORMAT,
            digest=total(files),
            base=self._base,
            kernel_release=release,
            python=base.python,
            agent=agent_digest(sources),
            recipe=recipe(),
            base_key=_key(found),
            files=files,
            packages={package.name: package.version for package in found.values()},
            own=self._own.names(),
            notes=tuple(self._notes),
        )

    def _init(self, base: Base) -> ImageTree:
        modules = [] if self._own.kernel else base.modules_at_boot
        version = ".".join(base.python.split(".")[:2])
        return userland.init(version, base.kernel_release, modules)

    def _write_kernel(self, folder: str, base: Base) -> str:
        path = os.path.join(folder, KERNEL)
        if self._own.kernel is None:
            _write_bytes(path, base.vmlinux)
        return self._check_kernel(path)

    def _check_kernel(self, path: str) -> str:
        with open(path, "rb") as file:
            vmlinux = file.read()
        if not kernel.has_pvh(vmlinux):
            self._notes.append("the kernel has no PVH entry: QEMU cannot start it")
        return kernel.release(vmlinux)

    def _write_disks(self, folder: str, base: Base, agent: ImageTree) -> None:
        self._say("disk images")
        whole = base.whole()
        whole.update(agent)
        for name, make in ((EXT4, disk.ext4), (EROFS, disk.erofs)):
            if reason := make(whole, os.path.join(folder, name)):
                self._notes.append(reason)

    def _own_manifest(self, folder: str) -> ImageManifest:
        release = self._check_kernel(os.path.join(folder, KERNEL))
        files = describe(folder, [KERNEL, INITRAMFS, EXT4, EROFS])
        return ImageManifest(
            format=FORMAT,
            digest=total(files),
            base=OWN,
            kernel_release=release,
            python="",
            agent="",
            recipe="",
            base_key="",
            files=files,
            own=self._own.names(),
            notes=tuple(self._notes),
        )

    def _say(self, what: str) -> None:
        self._done += 1
        self._progress(what, self._done, max(_STEPS, self._done))


def _recorded(store: Store, name: str) -> tuple[str, OwnFiles]:
    """Return what the image is to be rebuilt from: the user's own files are those in the old one.

    Raises NotFound, and Corrupt when a file of the user's is damaged: only the user has another.
    """
    try:
        folder, manifest = store.manifest(name)
    except (NotFound, Corrupt):
        if name != DEFAULT:
            raise
        return "debian", OwnFiles()
    paths = {file: os.path.join(folder, file) for file in manifest.own}
    if describe(folder, list(paths)) != {file: manifest.files[file] for file in paths}:
        raise Corrupt(
            f"a file that you gave for the image {name!r} is damaged",
            remediation=f"give it again: agentd image build --name {name} --kernel PATH ...",
        )
    root = paths.get(EXT4) or paths.get(EROFS)
    return manifest.base, OwnFiles(paths.get(KERNEL), paths.get(INITRAMFS), root)


def _debian(store: Store, base: str, *, own_kernel: bool) -> Debian:
    return Debian(base, store.inner(".packages"), own_kernel)


def _key(found: dict[str, Package]) -> str:
    return of_parts({package.name: package.sha256 for package in found.values()})


def _write_bytes(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _write(path: str, text: str) -> None:
    _write_bytes(path, text.encode())


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(128)
    except OSError:
        return ""
