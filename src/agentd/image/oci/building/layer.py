"""A layer as it is written: a plain tar archive, whose digest is its diff id.

Not compressed: what a compressor writes differs from one version of it to the next, and a layer is
to be the same whoever builds it.
"""

import hashlib
import os
import stat
import tarfile
from typing import BinaryIO

from agentd.image.model import ImageError
from agentd.image.oci.bounds import BOUNDS
from agentd.image.oci.values import WHITEOUT, check_kept
from agentd.model.units import readable_size

_OPAQUE = ".wh..wh..opq"
MAX_ENTRIES = 1 << 21
_LATEST = 8**11 - 1  # what a header holds: in the year 2242
_KINDS = {
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


class Changed(ImageError):
    """A file is not what it was when it was looked at."""


class LayerWriter:
    """Paths have no slash at their begin. ``entries`` counts what was written; ``newest`` is the
    latest time of a file in it. ``most`` bounds times, where builds are to be repeated. ``bound``
    is in bytes, of all files, holes among them: a disk's, for what was written to one."""

    def __init__(self, path: str, most: int | None = None) -> None:
        self.path = path
        self.entries = 0
        self.newest = 0
        self.bound = BOUNDS.unpacked
        self._most = most
        self._content = 0
        self._file = open(path, "xb")  # noqa: SIM115  (closed by ``finish``)
        self._hashing = _Hashing(self._file)
        self._archive = tarfile.open(  # type: ignore[call-overload]  # noqa: SIM115
            fileobj=self._hashing, mode="w|", format=tarfile.PAX_FORMAT
        )

    def close(self) -> None:
        """Drop what was written so far, where it is not finished. Idempotent."""
        if not self._file.closed:
            self._hashing.dropped = True
            self._archive.close()
            self._file.close()

    def finish(self) -> tuple[str, int]:
        """Finish it; return its digest and its size in bytes."""
        try:
            self._archive.close()
            os.fchmod(self._file.fileno(), 0o444)
        finally:
            self._file.close()
        return f"sha256:{self._hashing.total.hexdigest()}", self._hashing.size

    def add(
        self,
        path: str,
        kind: int,
        mode: int,
        owner: tuple[int, int],
        modified: int,
        *,
        target: str = "",
        attributes: dict[str, bytes] | None = None,
    ) -> None:
        """Add what is no plain file: ``kind`` is a folder, link or FIFO, as stat has them."""
        info = self._info(path, mode, owner, modified, attributes)
        info.type, info.linkname = _KINDS[kind], target
        self._add(info)

    def add_file(
        self,
        path: str,
        mode: int,
        owner: tuple[int, int],
        modified: int,
        size: int,
        data: BinaryIO,
        *,
        attributes: dict[str, bytes] | None = None,
    ) -> str:
        """Add a file; return its SHA-256 in hex. Raises Changed where ``data`` is shorter."""
        info = self._info(path, mode, owner, modified, attributes)
        info.size = size
        self._content += size
        if self._content > self.bound or self._hashing.size + size > BOUNDS.unpacked:
            most = readable_size(min(self.bound, BOUNDS.unpacked))
            raise ImageError(
                f"the layer would be larger than {most} with {path!r}",
                cause=f"it has {size} bytes, holes among them",
                remediation="make what is kept smaller, or allow more --disk",
            )
        reader = _Reader(data)
        try:
            self._add(info, reader)
        except (tarfile.ReadError, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise Changed(f"{path} was changed while it was copied") from error
        return reader.total.hexdigest()

    def add_hard_link(self, path: str, target: str, owner: tuple[int, int], mode: int) -> None:
        """Add a link; ``target`` is the path of a plain file that was added before."""
        info = self._info(path, mode, owner, 0, None)
        info.type, info.linkname = tarfile.LNKTYPE, target
        self._add(info)

    def whiteout(self, path: str) -> None:
        """Hide what the layers below have there."""
        above, _, name = path.rpartition("/")
        self._special(f"{above}/{WHITEOUT}{name}" if above else f"{WHITEOUT}{name}")

    def opaque(self, path: str) -> None:
        """Hide what the layers below have in a folder."""
        self._special(f"{path}/{_OPAQUE}" if path else _OPAQUE)

    def _special(self, path: str) -> None:
        self._add(tarfile.TarInfo(path))

    def _info(
        self,
        path: str,
        mode: int,
        owner: tuple[int, int],
        modified: int,
        attributes: dict[str, bytes] | None,
    ) -> tarfile.TarInfo:
        check_kept(path)
        info = tarfile.TarInfo(path)
        info.mode, (info.uid, info.gid) = mode, owner
        info.mtime = min(max(modified, 0), _LATEST if self._most is None else self._most)
        self.newest = max(self.newest, int(info.mtime))
        info.pax_headers = {
            f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
            for name, value in sorted((attributes or {}).items())
        }
        return info

    def _add(self, info: tarfile.TarInfo, data: "_Reader | None" = None) -> None:
        self.entries += 1
        if self.entries > MAX_ENTRIES:
            raise ImageError(f"the layer has over {MAX_ENTRIES:,} files")
        self._archive.addfile(info, data)


class _Hashing:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.total = hashlib.sha256()
        self.size = 0
        self.dropped = False  # what an archive's end writes is of no use, and the disk may be full

    def write(self, data: bytes) -> int:
        if self.dropped:
            return len(data)
        self.total.update(data)
        self.size += len(data)
        return self._file.write(data)


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.total = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.total.update(data)
        return data
