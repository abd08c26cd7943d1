"""OCI images on disk: blobs by digest, names that lead to them, roots unpacked once.

FOLDER/blobs/sha256/HEX   manifests, configurations, layers, as they were pulled
FOLDER/names/NAME.json    which manifest a name means (``Named``); "/" and ":" are quoted
FOLDER/roots/             unpacked (``roots``), and made disks of (``disk``)
FOLDER/steps/             what steps of builds became (``steps``)
FOLDER/work/              of pulls that go on; of one that was killed, until the next one cleans up
FOLDER/.lock              held while names, blobs or roots come or go

Everything is written aside, hashed, and put in place whole; a name comes last. The folder is its
owner's alone (0700): what lies in it may be set-user-ID.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from urllib.parse import quote, unquote

import msgspec

from agentd.image import store as machines
from agentd.image.model import Corrupt, ImageError, NotFound
from agentd.image.oci import disk, layout
from agentd.image.oci.roots import Lease, Roots
from agentd.image.oci.source import alike, check_name
from agentd.image.oci.steps import BuiltSteps
from agentd.image.oci.values import (
    OciConfig,
    OciImage,
    OciManifest,
    chain_id,
    check_digest,
    config_of,
    decode,
    manifest_of,
)
from agentd.image.oci.work import WorkFolder, sweep
from agentd.linux import locks, paths
from agentd.linux.replacing import replacing

FORMAT = 1
_NAMES, _ROOTS, _WORK = "names", "roots", "work"
_SUFFIX = ".json"


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``names/NAME.json``."""

    format: int
    name: str
    digest: str
    source: str
    pulled: float


class Removed(NamedTuple):
    """Bytes that were freed; roots that stay, since they are in use."""

    bytes: int
    in_use: int


class OciStore:
    """Keeps images, for any number of processes. Raises ImageError where it cannot be used."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = os.path.realpath(folder or default_folder())
        self.roots = Roots(os.path.join(self.folder, _ROOTS))
        self.steps = BuiltSteps(self.folder)
        self._names = os.path.join(self.folder, _NAMES)
        self._blobs = layout.blobs_of(self.folder)
        self._work = os.path.join(self.folder, _WORK)

    def names(self) -> list[str]:
        """List the names of the images, sorted. Raises ImageError."""
        try:
            found = os.listdir(self._names)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unreachable(error) from error
        names = (unquote(file.removesuffix(_SUFFIX)) for file in found if file.endswith(_SUFFIX))
        # A file whose name we would have written otherwise is nobody's.
        return sorted(name for name in set(names) if _file_of(name) in found)

    def find(self, name: str) -> str:
        """Return the full name of what a caller calls ``name``, with or without the tag "latest"; a
        digest is whatever image has it. Raises NotFound."""
        known = self.names()
        meant = [each for each in alike(name) if each in known]
        if not meant and name.startswith("sha256:"):
            meant = [each for each in known if self._means(each, name)]
        if meant:
            return meant[0]
        raise NotFound(
            f"no image {name!r} in {self.folder}",
            remediation="pull it: agentd image pull docker://"
            f"{name.removeprefix('docker://')}; agentd image ls lists others",
        )

    def digest(self, name: str) -> str:
        """Return which image a name means, and nothing more of it. Raises NotFound, Corrupt."""
        return self._meant(name).digest

    def get(self, name: str) -> OciImage:
        """Find an image; where its name means another meanwhile, that one. Raises NotFound,
        Corrupt, ImageError."""
        while True:
            named = self._meant(name)
            try:
                manifest, config = self._described(named.digest)
            except Corrupt as error:
                if self._meant(name) == named:
                    raise _damaged(named.name, str(error)) from error
                continue
            return OciImage(
                name=named.name,
                digest=named.digest,
                source=named.source,
                pulled=named.pulled,
                size=sum(blob.size for blob in (manifest.config, *manifest.layers)),
                chain=chain_id(config.rootfs.diff_ids),
                manifest=manifest,
                config=config,
            )

    def lease(self, image: OciImage) -> Lease:
        """Lease its unpacked root, which stays until the lease is closed. Raises Corrupt."""
        lease = self.roots.lease(image.chain)
        if lease is None:
            raise _damaged(image.name, "its unpacked root is gone")
        return lease

    def leased(self, find: Callable[[], OciImage]) -> tuple[OciImage, Lease]:
        """Find an image, and lease its root: of one that is replaced meanwhile, the other's. Raises
        as ``find`` does, and Corrupt."""
        while True:
            image = find()
            try:
                return image, self.lease(image)
            except Corrupt:
                if find() == image:
                    raise

    def hold(self, name: str, work: WorkFolder) -> OciImage:
        """Find an image whose blobs are ``work``'s from now on, whoever removes it. Raises
        NotFound, Corrupt, OSError."""
        with self._locked():
            image = self.get(name)
            for digest in (image.digest, *(blob.digest for blob in image.blobs)):
                place = os.path.join(work.blobs, check_digest(digest))
                try:
                    os.link(self.blob_path(digest), place, follow_symlinks=False)
                except FileExistsError:
                    continue
                except FileNotFoundError:
                    raise _damaged(image.name, f"the blob {digest} is gone") from None
        return image

    @contextlib.contextmanager
    def work(self) -> Iterator[WorkFolder]:
        """Yield a folder for a pull, then removed. What killed pulls left is removed first."""
        with self._locked():
            sweep(self._work)
            work = WorkFolder(self._work)
        with contextlib.closing(work):
            os.makedirs(work.blobs)
            yield work

    def publish(
        self, name: str, source: str, digest: str, config: OciConfig, work: WorkFolder
    ) -> None:
        """Put in place what a pull has verified, and let ``name`` mean it, with or without the tag
        "latest". Raises OSError."""
        check_name(name)
        chain = chain_id(config.rootfs.diff_ids)
        paths.sync_filesystem(work.path)
        with self._locked():
            for blob in os.listdir(work.blobs):
                os.replace(os.path.join(work.blobs, blob), os.path.join(self._blobs, blob))
            if work.unpacked:
                os.rename(work.unpacked, self.roots.place(chain))
            self.steps.put(work.steps)
            named = Named(FORMAT, name, digest, source, time.time())
            self._write_name(named)
            for other in alike(name)[1:]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._name_path(other))
            self._collect()

    def remove(self, name: str) -> Removed:
        """Forget a name; what no other name needs goes with it. Raises NotFound."""
        with self._locked():
            os.unlink(self._name_path(self.find(name)))
            return self._collect()

    def prune(self) -> Removed:
        """Remove what no name leads to, what killed pulls left, and the cache of builds."""
        with self._locked():
            left = sweep(self._work)
            self.steps.clear()
            removed = self._collect()
            return Removed(removed.bytes + left, removed.in_use)

    def verify(self, names: Iterable[str] = ()) -> dict[str, str]:
        """Hash blobs, look at unpacked files, by default of all; what is wrong with each, empty for
        nothing. One of all that is removed meanwhile is left out. Raises NotFound."""
        asked = [self.find(each) for each in names]
        states = {}
        for name in asked or self.names():
            try:
                self._verify(name)
            except Corrupt as error:
                states[name] = str(error)
            except NotFound:
                if asked:
                    raise
            else:
                states[name] = ""
        return states

    def blob_path(self, digest: str) -> str:
        return os.path.join(self._blobs, check_digest(digest))

    def blob(self, digest: str) -> bytes:
        """Read a small one, checked. Raises Corrupt."""
        with layout.folder(self.folder, *layout.BLOBS) as blobs:
            return layout.read_blob(digest, blobs)

    def mend(self, chain: str) -> None:
        """Remove its unpacked root if that is damaged, to be unpacked anew, or its disk. Raises
        Corrupt where it is in use."""
        lease = self.roots.lease(chain)
        if lease is None:
            return
        with lease:
            try:
                disk.check(self.roots.place(chain))
            except Corrupt:  # machines that have it open keep what they have
                disk.remove(self.roots.place(chain))
            try:
                self.roots.check(chain)
            except Corrupt:
                pass
            else:
                return
        with self._locked():
            if not self.roots.remove(chain):
                raise Corrupt(
                    f"the unpacked root {chain} is damaged, and in use",
                    remediation="end the sandboxes of the image, and pull it again",
                )

    def _verify(self, name: str) -> None:
        while True:
            image, lease = self.leased(lambda: self.get(name))
            with lease, layout.folder(self.folder, *layout.BLOBS) as blobs:
                try:
                    for blob in image.blobs:
                        layout.check_blob(blob, blobs)
                    self.roots.check(image.chain)
                    disk.check(self.roots.place(image.chain))
                except Corrupt as error:
                    if self.get(name) == image:
                        raise _damaged(name, str(error)) from error
                else:
                    return

    def _described(self, digest: str) -> tuple[OciManifest, OciConfig]:
        manifest = manifest_of(self.blob(digest))
        return manifest, config_of(self.blob(manifest.config.digest), manifest)

    def _meant(self, name: str) -> Named:
        """Read what a name means now. Raises NotFound, Corrupt."""
        while True:
            try:
                return self._named(self.find(name))
            except Corrupt as error:  # where it was removed just now it is looked for again
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise

    def _named(self, name: str) -> Named:
        with layout.folder(self.folder, _NAMES) as names:
            named = decode(layout.read(_file_of(name), names), Named, "name")
        if named.format != FORMAT or named.name != name:
            raise _damaged(name, "its name was written by another version, or changed")
        return named

    def _means(self, name: str, digest: str) -> bool:
        """False for a name that is damaged, or removed just now: another may mean it."""
        with contextlib.suppress(Corrupt):
            return self._named(name).digest == digest
        return False

    def _name_path(self, name: str) -> str:
        return os.path.join(self._names, _file_of(name))

    def _write_name(self, named: Named) -> None:
        path = self._name_path(named.name)
        with replacing(path, 0o600, alone=True, synced=True) as file:
            file.write(msgspec.json.encode(named))
        paths.sync(os.path.dirname(path))

    def _collect(self) -> Removed:
        """Remove what no name leads to; under the lock. Where a name cannot be read nothing is."""
        blobs = self.steps.blobs()
        chains: set[str] = set()
        for name in self.names():
            try:
                named = self._named(name)
                manifest, config = self._described(named.digest)
            except Corrupt:
                return Removed(0, 0)
            all_ = (named.digest, manifest.config.digest, *(b.digest for b in manifest.layers))
            blobs.update(map(check_digest, all_))
            chains.add(chain_id(config.rootfs.diff_ids))
        freed = used = 0
        for blob in set(self._blob_names()) - blobs:
            freed += self._blob_size(blob)
            os.unlink(os.path.join(self._blobs, blob))
        for chain in set(self.roots.chains()) - chains:
            size = self._root_size(chain)
            gone = self.roots.remove(chain)
            freed, used = (freed + size, used) if gone else (freed, used + 1)
        return Removed(freed, used)

    def _blob_names(self) -> list[str]:
        try:
            return os.listdir(self._blobs)
        except FileNotFoundError:
            return []

    def _blob_size(self, blob: str) -> int:
        return os.lstat(os.path.join(self._blobs, blob)).st_blocks * 512

    def _root_size(self, chain: str) -> int:
        """With its disk's."""
        size = 0
        with contextlib.suppress(Corrupt):
            size += self.roots.about(chain).bytes
        with contextlib.suppress(Corrupt):
            made = disk.about(self.roots.place(chain))
            size += made.size if made else 0
        return size

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """For moments only, so that nobody waits long."""
        self._make_all()
        try:
            lock = locks.HeldLock(locks.take(os.path.join(self.folder, ".lock"), fcntl.LOCK_EX))
        except OSError as error:
            raise self._unreachable(error) from error
        with lock:
            yield

    def _make_all(self) -> None:
        try:
            os.makedirs(self.folder, 0o700, exist_ok=True)
            status = os.stat(self.folder)
            if status.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it is another user's")
            if stat.S_IMODE(status.st_mode) != 0o700:
                os.chmod(self.folder, 0o700)
            for path in (self._names, self._blobs, self.roots.folder, self._work):
                os.makedirs(path, 0o700, exist_ok=True)
        except OSError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: OSError) -> ImageError:
        return ImageError(
            f"cannot use the images in {self.folder}",
            cause=error.strerror or "",
            remediation="set XDG_CACHE_HOME to a folder that you can write to",
        )


def default_folder() -> str:
    """Return the folder beside the machine images."""
    return os.path.join(os.path.dirname(machines.default_folder()), "oci")


def _file_of(name: str) -> str:
    return quote(name, safe="") + _SUFFIX


def _damaged(name: str, why: str) -> Corrupt:
    return Corrupt(
        f"the image {name!r} is damaged",
        cause=why,
        remediation=f"pull or build it again, as {name}",
    )
