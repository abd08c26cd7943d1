"""``dir:``: an image of one layer, made of a directory."""

import hashlib
import os
import tarfile
from typing import BinaryIO

from agentd.image.oci import layout, packing
from agentd.image.oci.bounds import BOUNDS, ImageBounds
from agentd.image.oci.values import (
    CONFIG,
    LAYER,
    MANIFEST,
    Descriptor,
    OciConfig,
    OciManifest,
    RootFs,
    RunConfig,
    architecture,
    check_kept,
    encode,
)
from agentd.model.errors import InvalidInput

_TIME = "1970-01-01T00:00:00Z"


def make_layout(source: str, path: str, bounds: ImageBounds = BOUNDS) -> None:
    """Write a layout of ``source`` at ``path``, an empty folder. Links in it are kept as links;
    sockets are left out, and what is mounted in it. Raises InvalidInput, ImageError beyond a bound,
    OSError."""
    if not os.path.isdir(source):
        raise InvalidInput(f"{source} is no directory", remediation="give one: dir:./rootfs")
    blobs = layout.blobs_of(path)
    os.makedirs(blobs)
    partial = os.path.join(blobs, "layer")
    with open(partial, "wb") as file:
        hashing = _Hashing(file, bounds)
        with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
            walk = packing.Walk(archive, entered=hashing.entered, reading=hashing.reading)
            walk.add(source)
    layer = Descriptor(LAYER, f"sha256:{hashing.total.hexdigest()}", hashing.size)
    os.rename(partial, os.path.join(blobs, layer.digest.removeprefix("sha256:")))
    config = OciConfig(
        architecture=architecture(),
        os="linux",
        created=_TIME,
        config=RunConfig(cmd=("/bin/sh",)),
        rootfs=RootFs((layer.digest,)),
    )
    manifest = OciManifest(layout.put(encode(config), CONFIG, blobs), (layer,))
    layout.write_index(path, layout.put(encode(manifest), MANIFEST, blobs))


class _Hashing:
    """Holds what is packed to the bounds of what will be unpacked: its methods raise ImageError."""

    def __init__(self, file: BinaryIO, bounds: ImageBounds) -> None:
        self._file = file
        self._bounds = bounds
        self.total = hashlib.sha256()
        self.size = 0
        self._files = 0

    def entered(self, inside: str) -> None:
        self._files += 1
        self._bounds.check_files(self._files)
        self._bounds.check_path(inside)
        check_kept(inside)

    def reading(self, size: int) -> None:
        self._bounds.check_size(self.size + size)

    def write(self, data: bytes) -> int:
        self.total.update(data)
        self.size += len(data)
        self._bounds.check_size(self.size)
        return self._file.write(data)
