"""Unpacks the layers of an image into a root, by umoci, from a layout of ours."""

import errno
import hashlib
import os
import shutil
import stat

from agentd.image.model import Corrupt
from agentd.image.oci import cell, layout, tools
from agentd.image.oci.bounds import BOUNDS, ImageBounds, measure, unpacked
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
        blobs = layout.blobs_of(source)
        measure(
            ((os.path.join(blobs, check_digest(b.digest)), b.media_type) for b in manifest.layers),
            bounds,
        )
        plain = _readable(path, source, manifest, config)
        layout.open_to_all(plain)
        free = shutil.disk_usage(path).free
        try:
            tools.run(
                [
                    *("umoci", "raw", "unpack", "--rootless"),
                    *("--image", f"{_LAYOUT}:{layout.TAG}", f"{cell.WORK}/{ROOT}"),
                ],
                work=path,
                reads={_LAYOUT: plain},
                seconds=seconds,
                file_size=bounds.unpacked,
            )
        except tools.ToolPanicked:
            # On a full disk it hashes and reads at once, and panics ("d.nx != 0").
            if _unpacked_size(blobs, manifest) < free:
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
    bounds.check_root(about.files, about.bytes)
    with open(os.path.join(path, ABOUT), "xb") as file:
        file.write(encode(about))


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
    with open(os.path.join(packed_blobs, check_digest(manifest.config.digest)), "rb") as file:
        told = layout.put(file.read(), CONFIG, blobs)
    whole = OciManifest(told, tuple(layers))
    layout.write_index(plain, layout.put(encode(whole), MANIFEST, blobs))
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
