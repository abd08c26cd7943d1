"""Pulls an image: fetched by skopeo, hashed by us, unpacked by umoci, then named."""

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agentd.image.model import Corrupt, ImageError, Progress
from agentd.image.oci import archives, cell, layout, registry, reuse, rootfs, tools
from agentd.image.oci.bounds import BOUNDS, ImageBounds
from agentd.image.oci.source import ImageSource, check_name, parse
from agentd.image.oci.store import OciStore
from agentd.image.oci.unpacking import unpack
from agentd.image.oci.values import (
    MANIFEST,
    Descriptor,
    OciConfig,
    OciImage,
    OciManifest,
    chain_id,
    check_digest,
)
from agentd.image.oci.work import WorkFolder
from agentd.model.errors import InvalidInput
from agentd.model.units import counted

if TYPE_CHECKING:
    from agentd.image.oci.network import FetchNetwork

SECONDS = 3600.0
_STEPS = 4
_LAYOUT, _ARCHIVE = "/mnt/layout", "/dev/archive"


def pull(
    source: str,
    name: str | None = None,
    progress: Progress | None = None,
    *,
    store: OciStore | None = None,
    seconds: float = SECONDS,
    insecure: bool = False,
    net: str | None = None,
    bounds: ImageBounds = BOUNDS,
) -> OciImage:
    """Fetch, verify, unpack and name an image; one of that name is replaced.

    ``insecure``: from a registry without TLS, or whose certificate nobody vouches for. ``net``:
    whom else it may lead to than the public, as rules, or "host".

    Raises InvalidInput, Unavailable (a program is missing), ImageError.
    """
    wanted = parse(source)
    chosen = check_name(name or wanted.name())
    store = store or OciStore()
    say = progress or (lambda what, done, steps: None)
    try:
        with store.work() as work:
            return _Pull(store, wanted, chosen, work, say, seconds, insecure, net, bounds).run()
    except OSError as error:
        raise explained(error, store) from error


class _Pull:
    def __init__(
        self,
        store: OciStore,
        source: ImageSource,
        name: str,
        work: WorkFolder,
        progress: Progress,
        seconds: float,
        insecure: bool,
        net: str | None,
        bounds: ImageBounds,
    ) -> None:
        self._store, self._source, self._name, self._work = store, source, name, work
        self._progress, self._seconds = progress, seconds
        self._insecure, self._net = insecure, net
        self._bounds = bounds
        self._done = 0

    def run(self) -> OciImage:
        self._step(f"fetching {self._source.text}")
        digest, manifest, config = self._fetched_and_verified()
        chain = chain_id(config.rootfs.diff_ids)
        self._store.mend(chain)
        with self._store.roots.making(chain) as ours:
            if ours:
                layers = len(manifest.layers)
                self._step(f"unpacking {counted(layers, 'layer')}")
                path = self._work.make("unpacked")
                unpack(path, self._work.layout, manifest, config, self._seconds, self._bounds)
                self._work.unpacked = path
            self._step("publishing")
            self._store.publish(self._name, self._source.text, digest, config, self._work)
        return self._store.get(self._name)

    def _fetched_and_verified(self) -> tuple[str, OciManifest, OciConfig]:
        """Blobs that are here already are not fetched again, unless one of them is damaged."""
        here = reuse.sizes(self._store) if self._source.transport == "docker" else {}
        fetched = self._fetch("fetched", here)
        self._step("verifying")
        try:
            return self._verified(fetched, frozenset(here))
        except Corrupt:
            if not here:
                raise
        return self._verified(self._fetch("again", {}), frozenset())

    def _fetch(self, name: str, here: Mapping[str, int]) -> str:
        """The path of a layout that nobody vouches for. In the place of blobs that are ``here``, by
        their sizes, it has holes: what fetches sees nothing of other images."""
        path = self._work.make(name)
        if here:
            reuse.offer(here, path)
        if self._source.transport == "dir":
            rootfs.make_layout(self._source.place, path, self._bounds)
            return path
        if self._source.transport == "docker":
            from agentd.image.oci.network import fetching

            access = registry.access(self._source, insecure=self._insecure)
            words = (*access.words, *_words(self._source), self._source.text)
            with fetching(self._source, self._net, access.files) as net:
                self._copy(path, words, access.files, net=net)
            return path
        reads, reference = self._place()
        try:
            words = (*_words(self._source), reference)
            self._copy(path, words, {registry.POLICY: registry.policy()}, reads)
        except ImageError as error:
            raise registry.explained(error, self._source) from error
        return path

    def _copy(
        self,
        path: str,
        words: Sequence[str],
        files: Mapping[str, bytes],
        reads: Mapping[str, str] = {},
        net: "FetchNetwork | None" = None,
    ) -> None:
        # it heeds no TMPDIR for archives, which it unpacks in /var/tmp
        skopeo = ("skopeo", "--tmpdir", cell.WORK, "--policy", registry.POLICY)
        tools.run(
            [*skopeo, "copy", *words, f"oci:{cell.WORK}:{layout.TAG}"],
            work=path,
            reads=reads,
            files=files,
            net=net,
            seconds=self._seconds,
            say=self._say,
            file_size=self._bounds.layer,
            # An archive is there once more, unpacked; what packs badly is a little larger.
            most=self._bounds.unpacked * (2 if net is None else 1) * 65 // 64 + (1 << 20),
        )

    def _place(self) -> tuple[dict[str, str], str]:
        """What skopeo reads of the host, and what it calls the image."""
        source = self._source
        if not os.path.exists(source.place):
            raise InvalidInput(
                f"{source.place} does not exist", remediation="give the path of an image"
            )
        inside = _LAYOUT if source.transport == "oci" else _ARCHIVE
        if os.path.isdir(source.place) != (inside == _LAYOUT):
            kind = "a directory, an OCI layout" if inside == _LAYOUT else "a file"
            raise InvalidInput(
                f"{source.place} is not {kind}", remediation="see agentd image pull --help"
            )
        known = archives.kinds(source.place) if inside == _ARCHIVE else frozenset()
        if known and source.transport not in known:
            (other,) = known
            raise InvalidInput(
                f"{source.place} is of the kind {other}, not {source.transport}",
                remediation=f"pull {other}:{source.place}",
            )
        tag = f":{source.tag}" if source.tag else ""
        return {inside: source.place}, f"{source.transport}:{inside}{tag}"

    def _verified(self, fetched: str, here: frozenset[str]) -> tuple[str, OciManifest, OciConfig]:
        """Move what the image consists of into a layout of ours, each blob hashed first. Nobody
        who could change it runs any more. Of those that were ``here`` it is the store's."""
        digest, manifest, config = layout.only_image(fetched)
        self._bounds.check_layers(manifest.layers)
        with layout.folder(fetched, *layout.BLOBS) as blobs:
            size = os.stat(check_digest(digest), dir_fd=blobs).st_size
            whole = Descriptor(MANIFEST, digest, size)
            for blob in {
                each.digest: each for each in (whole, manifest.config, *manifest.layers)
            }.values():
                name = check_digest(blob.digest)
                place = os.path.join(self._work.blobs, name)
                if os.path.lexists(place):
                    continue
                if name in here and reuse.link(self._store, blob, place):
                    continue
                layout.check_blob(blob, blobs)
                self._take(name, blobs)
        layout.write_index(self._work.layout, whole)
        return digest, manifest, config

    def _take(self, name: str, blobs: int) -> None:
        place = os.path.join(self._work.blobs, name)
        os.rename(name, place, src_dir_fd=blobs)
        fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(fd, os.geteuid(), os.getegid())
            os.fchmod(fd, 0o444)
        finally:
            os.close(fd)

    def _step(self, what: str) -> None:
        self._done += 1
        self._progress(what, self._done, _STEPS)

    def _say(self, line: str) -> None:
        if line.startswith("Copying "):
            self._progress(line[0].lower() + line[1:90], self._done, _STEPS)


def _words(source: ImageSource) -> tuple[str, ...]:
    """What skopeo is told of signatures, and of layers that are not packed: of an archive of
    Docker's it would go on to call them gzip's, so that it has to make them that."""
    if source.transport == "docker-archive":
        packed = ("--dest-compress-format", "gzip", "--dest-compress-level", "1")
        return ("--remove-signatures", *packed)
    return ("--remove-signatures", "--dest-oci-accept-uncompressed-layers")


def explained(error: OSError, store: OciStore, done: str = "pulled") -> ImageError:
    """Return what an error of the system means, where the image was to be ``done``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(store.folder).free
        return ImageError(
            f"there is no room for the image in {store.folder}",
            cause=f"{free / 1e6:.0f} MB are free",
            remediation="free some: agentd image prune; or set XDG_CACHE_HOME to a larger disk",
        )
    return ImageError(
        f"the image cannot be {done}: {error.filename or 'a file'}: {error.strerror or error}",
        remediation=f"see that you may read it, and write in {store.folder}",
    )
