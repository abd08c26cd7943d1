"""``dir:``: an image of one layer, made of a directory."""

import hashlib
import os
import platform
import stat
import tarfile
from typing import BinaryIO

from agentd.image.oci import layout
from agentd.image.oci.values import (
    CONFIG,
    LAYER,
    MANIFEST,
    Descriptor,
    OciConfig,
    OciManifest,
    RootFs,
    RunConfig,
    encode,
)
from agentd.model.errors import InvalidInput

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_TIME = "1970-01-01T00:00:00Z"
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def make_layout(source: str, path: str) -> None:
    """Write a layout of ``source`` at ``path``, an empty folder. Links in it are kept as links;
    sockets are left out, and what is mounted in it. Raises InvalidInput, OSError."""
    if not os.path.isdir(source):
        raise InvalidInput(f"{source} is no directory", remediation="give one: dir:./rootfs")
    blobs = os.path.join(path, "blobs", "sha256")
    os.makedirs(blobs)
    partial = os.path.join(blobs, "layer")
    with open(partial, "wb") as file:
        hashing = _Hashing(file)
        with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
            _Walk(archive).add(source)
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


def architecture() -> str:
    """This machine's, as OCI calls it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


class _Hashing:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.total = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.total.update(data)
        self.size += len(data)
        return self._file.write(data)


class _Walk:
    """Adds a directory to an archive, in the order of names, so that the same gives the same."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._linked: dict[tuple[int, int], str] = {}

    def add(self, source: str) -> None:
        device = os.stat(source).st_dev
        for path, folders, files, fd in os.fwalk(source, onerror=_raise):
            inside = os.path.relpath(path, source)
            if os.fstat(fd).st_dev != device:
                folders.clear()
                continue
            folders.sort()
            self._entry(inside, os.fstat(fd), fd, "")
            for name in sorted([*files, *(n for n in folders if _is_link(n, fd))]):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if not stat.S_ISSOCK(status.st_mode):
                    self._entry(os.path.normpath(f"{inside}/{name}"), status, fd, name)

    def _entry(self, inside: str, status: os.stat_result, dir_fd: int, name: str) -> None:
        info = tarfile.TarInfo(inside)
        info.mode = stat.S_IMODE(status.st_mode)
        info.uid, info.gid = status.st_uid, status.st_gid
        info.mtime = int(status.st_mtime)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            info.type = tarfile.DIRTYPE
        elif kind == stat.S_IFLNK:
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=dir_fd)
        elif kind == stat.S_IFIFO:
            info.type = tarfile.FIFOTYPE
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            info.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        else:
            self._file(info, status, dir_fd, name)
            return
        self._archive.addfile(info)

    def _file(self, info: tarfile.TarInfo, status: os.stat_result, dir_fd: int, name: str) -> None:
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in self._linked:
            info.type, info.linkname = tarfile.LNKTYPE, self._linked[key]
            self._archive.addfile(info)
            return
        self._linked[key] = info.name
        with os.fdopen(os.open(name, _OPEN, dir_fd=dir_fd), "rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            self._archive.addfile(info, file)


def _is_link(name: str, dir_fd: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)


def _raise(error: OSError) -> None:
    raise error
