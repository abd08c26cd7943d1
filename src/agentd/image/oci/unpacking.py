"""Unpacks the layers of an image into a root, by umoci, from a layout of ours."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable

from agentd.guest.removal import remove_folder
from agentd.image.model import Corrupt, ImageError
from agentd.image.oci import cell, layout, tools
from agentd.image.oci.bounds import BOUNDS, ImageBounds, measure, unpacked
from agentd.image.oci.handover import MOST, Handover, Misjudged, told_size
from agentd.image.oci.roots import ABOUT, ROOT, look
from agentd.image.oci.values import (
    CONFIG,
    LAYER,
    MANIFEST,
    PACKED,
    Descriptor,
    OciConfig,
    OciManifest,
    check_digest,
    encode,
)

_LAYOUT = "/mnt/layout"


def unpack(
    path: str,
    source: str,
    manifest: OciManifest,
    config: OciConfig,
    seconds: float,
    bounds: ImageBounds = BOUNDS,
) -> None:
    """Make ``path``, an empty folder, a root and what describes it, as ``roots`` keeps them.

    ``source`` is a layout with what was verified. Raises Corrupt, ImageError, OSError.
    """
    if manifest.layers:
        archives = _archives(layout.blobs_of(source), manifest, config)
        free = shutil.disk_usage(path).free
        handed = _are_handed(archives, min(MOST, bounds.unpacked, free // 2))
        if not (handed and _unpack_handed(path, source, manifest, archives, seconds, bounds)):
            _unpack_measured(path, source, manifest, config, seconds, bounds)
    else:
        os.mkdir(os.path.join(path, ROOT), 0o755)
    # It was its writer's; the root beneath it stays so.
    os.chown(path, os.geteuid(), os.getegid())
    if os.listdir(path) != [ROOT] or not stat.S_ISDIR(os.lstat(f"{path}/{ROOT}").st_mode):
        raise Corrupt("the image's layers write outside of its root")
    try:
        about, files = look(os.path.join(path, ROOT))
    except RecursionError:
        raise Corrupt("the image has directories too deep in each other") from None
    bounds.check_root(files, about.bytes)
    with open(os.path.join(path, ABOUT), "xb") as file:
        file.write(encode(about))


def _archives(blobs: str, manifest: OciManifest, config: OciConfig) -> list[Descriptor]:
    """Describe what each layer is unpacked, of as many bytes as it says, which need not be so."""
    return [
        Descriptor(
            LAYER,
            diff_id,
            told_size(os.path.join(blobs, check_digest(layer.digest)), layer.media_type),
        )
        for layer, diff_id in zip(manifest.layers, config.rootfs.diff_ids, strict=True)
    ]


def _are_handed(archives: list[Descriptor], most: int) -> bool:
    """Return whether all say how large they are, none is there twice, and it is not too much."""
    known = min(archive.size for archive in archives) > 0
    once = len({archive.digest for archive in archives}) == len(archives)
    return known and once and sum(archive.size for archive in archives) <= most


def _unpack_handed(
    path: str,
    source: str,
    manifest: OciManifest,
    archives: list[Descriptor],
    seconds: float,
    bounds: ImageBounds,
) -> bool:
    """Unpack them while they are measured; return False, and leave nothing, where one is not as
    large as it says, or no pipe can be made: not every file system has them."""
    packed, piped = layout.blobs_of(source), f"{path}.piped"
    blobs = layout.blobs_of(piped)
    os.makedirs(blobs)
    _describe(piped, source, manifest, archives)
    layers = tuple(zip(manifest.layers, archives, strict=True))
    try:
        handover = Handover(packed, blobs, layers, bounds)
    except OSError:
        remove_folder(piped)
        return False
    try:
        with handover:
            _umoci(path, piped, seconds, bounds)
    except ImageError:
        if handover.error is None:
            raise  # it ended by itself, and so nobody read on
    finally:
        remove_folder(piped)
    if isinstance(handover.error, Misjudged):
        remove_folder(os.path.join(path, ROOT))
        return False
    if handover.error is not None:
        raise handover.error
    if not handover.complete:
        raise Corrupt("umoci has not read all of the image's layers")
    return True


def _unpack_measured(
    path: str,
    source: str,
    manifest: OciManifest,
    config: OciConfig,
    seconds: float,
    bounds: ImageBounds,
) -> None:
    """Unpack them once all have been measured."""
    blobs = layout.blobs_of(source)
    size = measure(
        ((os.path.join(blobs, check_digest(b.digest)), b.media_type) for b in manifest.layers),
        bounds,
    )
    readable = _readable(path, source, manifest, config)
    free = shutil.disk_usage(path).free
    try:
        _umoci(path, readable, seconds, bounds)
    except tools.ToolPanicked:
        # On a full disk it hashes and reads at once, panics ("d.nx != 0"), and has removed what
        # was there: it is told by what was read of the layers, never by what they say they have.
        if size < free:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


def _umoci(path: str, source: str, seconds: float, bounds: ImageBounds) -> None:
    layout.open_to_all(source)
    tools.run(
        [
            *("umoci", "raw", "unpack", "--rootless"),
            *("--image", f"{_LAYOUT}:{layout.TAG}", f"{cell.WORK}/{ROOT}"),
        ],
        work=path,
        reads={_LAYOUT: source},
        seconds=seconds,
        file_size=bounds.unpacked,
    )


def _describe(path: str, source: str, manifest: OciManifest, layers: Iterable[Descriptor]) -> None:
    """Make a layout of a folder with blobs: the image of ``source``, of these layers."""
    blobs = layout.blobs_of(path)
    with open(
        os.path.join(layout.blobs_of(source), check_digest(manifest.config.digest)), "rb"
    ) as file:
        told = layout.put(file.read(), CONFIG, blobs)
    whole = OciManifest(told, tuple(layers))
    layout.write_index(path, layout.put(encode(whole), MANIFEST, blobs))


def _readable(path: str, source: str, manifest: OciManifest, config: OciConfig) -> str:
    """The path of a layout that umoci can unpack: it knows no zstd."""
    if all(PACKED[layer.media_type] for layer in manifest.layers):
        return source
    plain = f"{path}.plain"
    packed_blobs, blobs = layout.blobs_of(source), layout.blobs_of(plain)
    os.makedirs(blobs)
    layers = []
    for layer, diff_id in zip(manifest.layers, config.rootfs.diff_ids, strict=True):
        packed = os.path.join(packed_blobs, check_digest(layer.digest))
        if PACKED[layer.media_type]:
            os.link(packed, os.path.join(blobs, check_digest(layer.digest)))
            layers.append(layer)
        else:
            size = _decompress(packed, os.path.join(blobs, check_digest(diff_id)), diff_id)
            layers.append(Descriptor(LAYER, diff_id, size))
    _describe(plain, source, manifest, layers)
    return plain


def _decompress(source: str, target: str, diff_id: str) -> int:
    """Its size. Raises Corrupt where it is not the layer that the configuration tells of."""
    total, size = hashlib.sha256(), 0
    with open(source, "rb") as packed, open(target, "xb") as plain:
        os.fchmod(plain.fileno(), 0o444)
        for data in unpacked(packed, f"{LAYER}+zstd"):
            total.update(data)
            size += plain.write(data)
    if f"sha256:{total.hexdigest()}" != diff_id:
        raise Corrupt(f"a layer is not the {diff_id} that the image's configuration tells of")
    return size
