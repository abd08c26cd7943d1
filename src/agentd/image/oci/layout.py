"""An OCI image layout on disk: read with suspicion, each blob hashed; or written by us.

What is read was written by a program that had read what somebody else wrote: no name in it is
followed, and nothing is taken for more than its digest proves.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator

from agentd.image.model import Corrupt
from agentd.image.oci.values import (
    MANIFEST,
    MAX_JSON,
    REF_NAME,
    Descriptor,
    OciConfig,
    OciIndex,
    OciManifest,
    check_digest,
    config_of,
    decode,
    digest_of,
    encode,
    manifest_of,
)

TAG = "image"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A file that is no plain one is not waited for.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE = 1 << 20
_OPEN = 0o755
BLOBS = ("blobs", "sha256")
VERSION = b'{"imageLayoutVersion":"1.0.0"}'


@contextlib.contextmanager
def folder(path: str, *below: str) -> Iterator[int]:
    """Open the folder ``below``, reached through no link; return its descriptor. Raises Corrupt."""
    fd = os.open(path, _FOLDER)
    try:
        for name in below:
            try:
                inner = os.open(name, _FOLDER, dir_fd=fd)
            except OSError as error:
                raise Corrupt(f"the layout has no folder {name}", cause=str(error)) from error
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def open_plain(name: str, dir_fd: int) -> int:
    """Open a plain file in a folder; return its descriptor. Raises Corrupt for anything else."""
    try:
        fd = os.open(name, _FILE, dir_fd=dir_fd)
    except OSError as error:
        raise Corrupt(f"{name} is missing", cause=error.strerror or "") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Corrupt(f"{name} is no plain file")
    return fd


def read(name: str, dir_fd: int, most: int = MAX_JSON) -> bytes:
    """Read and decode a file of JSON. Raises Corrupt."""
    with os.fdopen(open_plain(name, dir_fd), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise Corrupt(f"{name} has more than {most} bytes")
    return data


def read_blob(digest: str, blobs: int) -> bytes:
    """Read a small blob, checked. Raises Corrupt."""
    data = read(check_digest(digest), blobs)
    if digest_of(data) != digest:
        raise Corrupt(f"the blob {digest} is damaged")
    return data


def check_blob(blob: Descriptor, blobs: int) -> None:
    """Hash it. Raises Corrupt where it is another."""
    total = hashlib.sha256()
    with os.fdopen(open_plain(check_digest(blob.digest), blobs), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while data := file.read(_PIECE):
            total.update(data)
    if size != blob.size or f"sha256:{total.hexdigest()}" != blob.digest:
        raise Corrupt(f"the blob {blob.digest} is damaged")


def only_image(path: str) -> tuple[str, OciManifest, OciConfig]:
    """Return digest, manifest and configuration of the one image in a layout. Raises Corrupt."""
    with folder(path) as top:
        index = decode(read("index.json", top), OciIndex, "index")
    if len(index.manifests) != 1 or index.manifests[0].media_type != MANIFEST:
        raise Corrupt("the layout has not exactly one image")
    digest = index.manifests[0].digest
    with folder(path, *BLOBS) as blobs:
        manifest = manifest_of(read_blob(digest, blobs))
        return digest, manifest, config_of(read_blob(manifest.config.digest, blobs), manifest)


def write_index(path: str, manifest: Descriptor) -> None:
    """Make a layout with one image, TAG, of the folder whose ``blobs`` are there already."""
    tagged = Descriptor(manifest.media_type, manifest.digest, manifest.size, {REF_NAME: TAG})
    _write(os.path.join(path, "oci-layout"), VERSION)
    _write(os.path.join(path, "index.json"), encode(OciIndex((tagged,))))


def put(data: bytes, media_type: str, blobs: str) -> Descriptor:
    """Write a blob into a folder of ours."""
    digest = digest_of(data)
    _write(os.path.join(blobs, check_digest(digest)), data)
    return Descriptor(media_type, digest, len(data))


def blobs_of(path: str) -> str:
    """Return where the blobs of a layout are."""
    return os.path.join(path, *BLOBS)


def open_to_all(path: str) -> None:
    """Open it to all, whatever the umask, for a program that runs as another user."""
    for each in (path, os.path.dirname(blobs_of(path)), blobs_of(path)):
        os.chmod(each, _OPEN)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(data)
