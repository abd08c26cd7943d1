"""The disk that virtual machines have an image from: a file system made of its unpacked root.

ROOTS/CHAIN/disk.erofs   read-only, its files with the owners that the image gives them
ROOTS/CHAIN/disk.json    what it was when it was made (``DiskRecord``); written last
"""

import contextlib
import hashlib
import os

import msgspec

from agentd.image.model import Corrupt
from agentd.image.oci.layout import open_plain, read
from agentd.image.oci.values import decode

DISK, ABOUT = "disk.erofs", "disk.json"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 20


class DiskRecord(msgspec.Struct, frozen=True):
    """``size`` in bytes; ``digest`` of the whole file."""

    size: int
    digest: str


def about(place: str) -> DiskRecord | None:
    """Read a chain's folder: None where no disk was made, or it was cut. Raises Corrupt."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(place, _FOLDER)
        try:
            size = os.stat(DISK, dir_fd=fd, follow_symlinks=False).st_size
            os.stat(ABOUT, dir_fd=fd, follow_symlinks=False)
            record = decode(read(ABOUT, fd), DiskRecord, "description of its disk")
        finally:
            os.close(fd)
        return record if record.size == size else None
    return None


def check(place: str) -> None:
    """Hash it, if there is one. Raises Corrupt where it is another than was made."""
    record = about(place)
    if record is None:
        if os.path.lexists(os.path.join(place, ABOUT)):
            raise Corrupt("its disk for virtual machines was cut, or is gone")
        return
    fd = os.open(place, _FOLDER)
    try:
        if digest(open_plain(DISK, fd)) != record.digest:
            raise Corrupt("its disk for virtual machines is not what was made")
    finally:
        os.close(fd)


def remove(place: str) -> None:
    """Remove it, to be made anew."""
    for name in (ABOUT, DISK):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(place, name))


def digest(fd: int) -> str:
    """Return the digest of a whole file, which is closed then."""
    total = hashlib.sha256()
    with os.fdopen(fd, "rb", buffering=0) as file:
        while data := file.read(_PIECE):
            total.update(data)
    return f"sha256:{total.hexdigest()}"
