"""Pulls an image: fetched by skopeo, hashed by us, unpacked by umoci, then named."""

import errno
import hashlib
import os
import shutil
import stat

import zstandard

from agentd.image.model import Corrupt, ImageError, Progress
from agentd.image.oci import cell, layout, registry, rootfs, tools
from agentd.image.oci.roots import ABOUT, ROOT, look
from agentd.image.oci.source import ImageSource, check_name, parse
from agentd.image.oci.store import OciStore, PullFolder
from agentd.image.oci.values import (
    CONFIG,
    LAYER,
    MANIFEST,
    PACKED,
    Descriptor,
    OciConfig,
    OciImage,
    OciManifest,
    chain_id,
    check_digest,
    encode,
)
from agentd.model.errors import InvalidInput

SECONDS = 3600.0
_STEPS = 4
_PIECE = 1 << 20
_OPEN = 0o755
_ZSTD_WINDOW = 1 << 27  # what zstd itself takes by default; a larger one would be so much memory
_LAYOUT, _ARCHIVE = "/mnt/layout", "/dev/archive"


def pull(
    source: str,
    name: str | None = None,
    progress: Progress | None = None,
    *,
    store: OciStore | None = None,
    seconds: float = SECONDS,
    insecure: bool = False,
) -> OciImage:
    """Fetch, verify, unpack and name an image; one of that name is replaced.

    ``insecure``: from a registry without TLS, or whose certificate nobody vouches for.

    Raises InvalidInput, Unavailable (a program is missing), ImageError.
    """
    wanted = parse(source)
    chosen = check_name(name or wanted.name())
    store = store or OciStore()
    say = progress or (lambda what, done, steps: None)
    try:
        with store.work() as work:
            return _Pull(store, wanted, chosen, work, say, seconds, insecure).run()
    except OSError as error:
        raise _explained(error, store) from error


class _Pull:
    def __init__(
        self,
        store: OciStore,
        source: ImageSource,
        name: str,
        work: PullFolder,
        progress: Progress,
        seconds: float,
        insecure: bool,
    ) -> None:
        self._store, self._source, self._name, self._work = store, source, name, work
        self._progress, self._seconds = progress, seconds
        self._insecure = insecure
        self._done = 0

    def run(self) -> OciImage:
        self._step(f"fetching {self._source.text}")
        fetched = self._fetch()
        self._step("verifying")
        digest, manifest, config = self._verified(fetched)
        chain = chain_id(config.rootfs.diff_ids)
        self._store.mend(chain)
        with self._store.roots.making(chain) as ours:
            if ours:
                layers = len(manifest.layers)
                self._step(f"unpacking {layers} layer{'s' if layers != 1 else ''}")
                self._work.unpacked = self._unpack(manifest, config)
            self._step("publishing")
            self._store.publish(self._name, self._source.text, digest, config, self._work)
        return self._store.get(self._name)

    def _fetch(self) -> str:
        """The path of a layout that nobody vouches for."""
        path = self._work.make("fetched")
        if self._source.transport == "dir":
            rootfs.make_layout(self._source.place, path)
            return path
        remote = self._source.transport == "docker"
        if remote:
            access = registry.access(self._source, insecure=self._insecure)
            reads: dict[str, str] = {}
            reference = self._source.text
        else:
            access = registry.Access({registry.POLICY: registry.policy()}, {}, ())
            reads, reference = self._place()
        try:
            tools.run(
                [
                    # it heeds no TMPDIR for archives, which it unpacks in /var/tmp
                    *("skopeo", "--tmpdir", cell.WORK, "--policy", registry.POLICY),
                    *("copy", *access.words),
                    *("--remove-signatures", *_layers(self._source), reference),
                    f"oci:{cell.WORK}:{layout.TAG}",
                ],
                work=path,
                reads=reads,
                files=access.files,
                env=access.env,
                net=remote,
                seconds=self._seconds,
                say=self._say,
            )
        except ImageError as error:
            raise registry.explained(error, self._source) from error
        return path

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
        tag = f":{source.tag}" if source.tag else ""
        return {inside: source.place}, f"{source.transport}:{inside}{tag}"

    def _verified(self, fetched: str) -> tuple[str, OciManifest, OciConfig]:
        """Move what the image consists of into a layout of ours, each blob hashed first. Nobody
        who could change it runs any more."""
        digest, manifest, config = layout.only_image(fetched)
        with layout.folder(fetched, "blobs", "sha256") as blobs:
            size = os.stat(check_digest(digest), dir_fd=blobs).st_size
            whole = Descriptor(MANIFEST, digest, size)
            for blob in {
                each.digest: each for each in (whole, manifest.config, *manifest.layers)
            }.values():
                layout.check_blob(blob, blobs)
                self._take(check_digest(blob.digest), blobs)
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

    def _unpack(self, manifest: OciManifest, config: OciConfig) -> str:
        path = self._work.make("unpacked")
        if manifest.layers:
            source = self._readable(manifest, config)
            for each in ("", "blobs", "blobs/sha256"):  # whatever the umask: umoci is another user
                os.chmod(os.path.join(source, each), _OPEN)
            free = shutil.disk_usage(path).free
            try:
                tools.run(
                    [
                        *("umoci", "raw", "unpack", "--rootless"),
                        *("--image", f"{_LAYOUT}:{layout.TAG}", f"{cell.WORK}/{ROOT}"),
                    ],
                    work=path,
                    reads={_LAYOUT: source},
                    seconds=self._seconds,
                )
            except tools.ToolPanicked:
                # On a full disk it hashes and reads at once, and panics ("d.nx != 0").
                if _unpacked_size(self._work.blobs, manifest) < free:
                    raise
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        else:
            os.mkdir(os.path.join(path, ROOT), 0o755)
        # It was its writer's; the root beneath it stays so.
        os.chown(path, os.geteuid(), os.getegid())
        if os.listdir(path) != [ROOT] or not stat.S_ISDIR(os.lstat(f"{path}/{ROOT}").st_mode):
            raise Corrupt("the image's layers write outside of its root")
        try:
            about = look(os.path.join(path, ROOT))
        except RecursionError:
            raise Corrupt("the image has directories too deep in each other") from None
        with open(os.path.join(path, ABOUT), "xb") as file:
            file.write(encode(about))
        return path

    def _readable(self, manifest: OciManifest, config: OciConfig) -> str:
        """The path of a layout that umoci can unpack: it knows no zstd."""
        if all(PACKED[layer.media_type] for layer in manifest.layers):
            return self._work.layout
        path = self._work.make("plain")
        blobs = os.path.join(path, "blobs", "sha256")
        os.makedirs(blobs)
        layers = []
        for layer, diff_id in zip(manifest.layers, config.rootfs.diff_ids, strict=True):
            source = os.path.join(self._work.blobs, check_digest(layer.digest))
            if PACKED[layer.media_type]:
                os.link(source, os.path.join(blobs, check_digest(layer.digest)))
                layers.append(layer)
            else:
                size = _decompress(source, os.path.join(blobs, check_digest(diff_id)), diff_id)
                layers.append(Descriptor(LAYER, diff_id, size))
        told = layout.put(self._store_config(manifest), CONFIG, blobs)
        plain = OciManifest(told, tuple(layers))
        layout.write_index(path, layout.put(encode(plain), MANIFEST, blobs))
        return path

    def _store_config(self, manifest: OciManifest) -> bytes:
        with open(
            os.path.join(self._work.blobs, check_digest(manifest.config.digest)), "rb"
        ) as file:
            return file.read()

    def _step(self, what: str) -> None:
        self._done += 1
        self._progress(what, self._done, _STEPS)

    def _say(self, line: str) -> None:
        if line.startswith("Copying "):
            self._progress(line[0].lower() + line[1:90], self._done, _STEPS)


def _layers(source: ImageSource) -> tuple[str, ...]:
    """What skopeo is told of layers that are not packed: of an archive of Docker's it would go on
    to call them gzip's, so that it has to make them that."""
    if source.transport == "docker-archive":
        return ("--dest-compress-format", "gzip", "--dest-compress-level", "1")
    return ("--dest-oci-accept-uncompressed-layers",)


def _decompress(source: str, target: str, diff_id: str) -> int:
    """Its size. Raises Corrupt where it is not the layer that the configuration tells of."""
    total, size = hashlib.sha256(), 0
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    with open(source, "rb") as packed, open(target, "xb") as plain:
        os.fchmod(plain.fileno(), 0o444)
        try:
            with decompressor.stream_reader(packed, read_across_frames=True) as reader:
                while data := reader.read(_PIECE):
                    total.update(data)
                    size += plain.write(data)
        except zstandard.ZstdError as error:
            raise Corrupt("a layer cannot be decompressed", cause=str(error)) from error
    if f"sha256:{total.hexdigest()}" != diff_id:
        raise Corrupt(f"a layer is not the {diff_id} that the image's configuration tells of")
    return size


def _unpacked_size(blobs: str, manifest: OciManifest) -> int:
    """Bytes of the layers' archives at least, as gzip tells of itself in its last four."""
    size = 0
    for layer in manifest.layers:
        with open(os.path.join(blobs, check_digest(layer.digest)), "rb") as file:
            packed = file.seek(0, os.SEEK_END)
            file.seek(max(0, packed - 4))
            told = int.from_bytes(file.read(4), "little")
        size += told if layer.media_type == f"{LAYER}+gzip" else packed
    return size


def _explained(error: OSError, store: OciStore) -> ImageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(store.folder).free
        return ImageError(
            f"there is no room for the image in {store.folder}",
            cause=f"{free / 1e6:.0f} MB are free",
            remediation="free some: agentd image prune; or set XDG_CACHE_HOME to a larger disk",
        )
    return ImageError(
        f"the image cannot be pulled: {error.filename or 'a file'}: {error.strerror}",
        remediation=f"see that you may read it, and write in {store.folder}",
    )
