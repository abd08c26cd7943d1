"""Makes an image's disk at its first use: an archive of its root, and mkfs.erofs in a cell."""

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator

from agentd.image import disk as machine_disks
from agentd.image.model import ImageError, Progress
from agentd.image.oci import cell, disk, packing, tools
from agentd.image.oci.disk import DiskRecord
from agentd.image.oci.layout import folder, open_plain
from agentd.image.oci.store import OciStore
from agentd.image.oci.values import OciImage, encode
from agentd.linux import paths, python
from agentd.model.errors import Unavailable

_SECONDS = 3600.0
_ARCHIVE, _SOURCE = "root.tar", "/dev/archive"
# As ``disk`` of machine images: fixed, so that the same root gives the same disk.
_MKFS = ("mkfs.erofs", "--quiet", "-T0", "--mkfs-time", "--preserve-mtime", "--tar=f")
_UUID = "-U6167656e-7464-4000-8000-000000000002"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def ensure(store: OciStore, image: OciImage, progress: Progress) -> tuple[str, DiskRecord]:
    """Return the path of the image's disk and what it is; made if need be, once for each chain of
    layers.

    The caller has a lease of the image's root. Any number of processes may ask at once. Raises
    Unavailable (a program is missing), ImageError, Corrupt.
    """
    place = store.roots.place(image.chain)
    found = disk.about(place)
    if found is None:
        try:
            with _alone(place):
                found = disk.about(place)  # another process may have made it meanwhile
                if found is None:
                    found = _make(store, image, place, progress)
        except OSError as error:
            raise _explained(error, store, image) from error
    return os.path.join(place, disk.DISK), found


@contextlib.contextmanager
def _alone(place: str) -> Iterator[None]:
    """One at a time; the kernel gives the lock back when the process dies."""
    fd = os.open(place, _FOLDER)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make(store: OciStore, image: OciImage, place: str, progress: Progress) -> DiskRecord:
    _check_tool()
    what = f"making a disk of {image.name}"
    progress(what, 0, 1)
    with store.work() as work:
        made = work.make("disk")
        archive = os.path.join(work.path, _ARCHIVE)
        _pack(store.roots.root(image.chain), archive)
        try:
            os.chmod(archive, 0o444)  # whatever the umask: the maker is another user
            tools.run(
                [*_MKFS, _UUID, f"{cell.WORK}/{disk.DISK}", _SOURCE],
                work=made,
                reads={_SOURCE: archive},
                seconds=_SECONDS,
            )
        finally:
            os.unlink(archive)
        record = _take(made)
        # The record last: what is there without one does not count.
        os.replace(os.path.join(made, disk.DISK), os.path.join(place, disk.DISK))
        paths.sync(place)
        _write(os.path.join(work.path, disk.ABOUT), encode(record))
        os.replace(os.path.join(work.path, disk.ABOUT), os.path.join(place, disk.ABOUT))
        paths.sync(place)
    progress(what, 1, 1)
    return record


def _take(made: str) -> DiskRecord:
    """Own what the maker wrote, once nobody can change it any more. Raises Corrupt."""
    with folder(made) as fd:
        file = open_plain(disk.DISK, fd)
    os.fchown(file, os.geteuid(), os.getegid())
    os.fchmod(file, 0o444)
    os.fsync(file)
    size = os.fstat(file).st_size
    return DiskRecord(size, disk.digest(file))


def _pack(root: str, path: str) -> None:
    """As a process: it may become root of a user namespace for it. Raises OSError, ImageError."""
    try:
        done = subprocess.run(
            python.command(packing.__name__, root, path),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=python.environment(),
            cwd="/",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"the image's files took more than {_SECONDS:g} s to read") from None
    if done.returncode == packing.NO_ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()[-600:]
        raise ImageError("the image's files cannot be read", cause=said)


def _check_tool() -> None:
    """Raises Unavailable."""
    tools.find(_MKFS[0])
    if not machine_disks.takes_tar():
        raise Unavailable(
            "mkfs.erofs takes no tar archive here: it is too old",
            remediation="install erofs-utils 1.7 or newer, or ask for --isolation namespace",
        )


def _write(path: str, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _explained(error: OSError, store: OciStore, image: OciImage) -> ImageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(store.folder).free
        return ImageError(
            f"there is no room for a disk of {image.name} in {store.folder}",
            cause=f"{free / 1e6:.0f} MB are free, and it takes {packing.COPIES} times the image's",
            remediation="free some: agentd image prune; or set XDG_CACHE_HOME to a larger disk",
        )
    return ImageError(
        f"no disk can be made of {image.name}: {error.filename or 'a file'}: {error.strerror}",
        remediation=f"see that you may write in {store.folder}",
    )
