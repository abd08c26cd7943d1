"""Writes a runtime for another machine: a directory, or an archive of one."""

import gzip
import io
import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass

from agentd.image.runtime.store import AgentRuntime, ensure
from agentd.linux.replacing import replacing
from agentd.model.errors import InvalidInput

#: Of the directory in an archive.
NAME = "agentd-guest"
_TAR, _GZIP = (".tar",), (".tar.gz", ".tgz")
ARCHIVES = (*_TAR, *_GZIP)
# What nobody means by the name of a directory.
_OTHER_ARCHIVES = (
    *(".gz", ".xz", ".bz2", ".zst", ".lz4", ".txz", ".tbz", ".tbz2", ".tzst"),
    *(".zip", ".7z", ".rar", ".pyz", ".cpio", ".TAR", ".TGZ", ".GZ", ".ZIP"),
)


@dataclass(frozen=True)
class GuestBundle:
    """``digest`` is of what it was made from, whatever it was written as; ``size`` is unpacked."""

    path: str
    digest: str
    version: str
    size: int


def write(path: str) -> GuestBundle:
    """Write an archive where the path ends in one of ``ARCHIVES``, replaced whole; else a directory
    that is not there yet, or empty. Raises InvalidInput, Unavailable."""
    if not path.endswith(ARCHIVES) and path.endswith(_OTHER_ARCHIVES):
        raise InvalidInput(
            f"{path!r} is of a kind of archive that is not written",
            remediation=f"give a file that ends in {', '.join(ARCHIVES)}, or a new directory",
        )
    with ensure() as runtime:
        try:
            if path.endswith(ARCHIVES):
                _archive(runtime, path)
            else:
                _directory(runtime, path)
        except OSError as error:
            raise InvalidInput(
                f"cannot write {path!r}: {error.strerror}",
                remediation=f"give a new directory, or a file that ends in {', '.join(ARCHIVES)}",
            ) from error
        return GuestBundle(path, runtime.digest, runtime.version, runtime.size)


def _directory(runtime: AgentRuntime, path: str) -> None:
    path = os.path.abspath(path)
    new = tempfile.mkdtemp(prefix=".agentd-guest-", dir=os.path.dirname(path))
    try:
        inner = os.path.join(new, NAME)
        shutil.copytree(runtime.folder, inner, copy_function=shutil.copy)
        os.rename(inner, path)  # takes the place of an empty directory, and of no other
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _archive(runtime: AgentRuntime, path: str) -> None:
    data = _tar(runtime.folder)
    if path.endswith(_GZIP):
        data = gzip.compress(data, mtime=0)
    with replacing(os.path.realpath(path), 0o644) as file:
        file.write(data)


def _tar(folder: str) -> bytes:
    """The same bytes for the same runtime: sorted, root's, of no time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(folder, NAME, filter=_plain)
    return buffer.getvalue()


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info
