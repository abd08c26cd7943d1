"""Files that are replaced whole: who reads one sees what it was, or all of what it becomes."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from agentd.linux import nameless

#: Where the machine has its devices, and links to what programs read and write, as /dev/stdout.
DEVICES = "/dev"
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_ALONE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def replacing(
    path: str, mode: int, *, alone: bool = False, synced: bool = False
) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path``, with that mode whatever the umask, once the
    block has ended. Until then it has no name, where the file system can do that, so that nothing
    of it is left where the block fails or this process is killed. Raises OSError, also where it
    would take the place of a device, a fifo or a socket, or of a link among devices.

    ``alone``: nobody else replaces it now, and what one who was killed left half written goes.
    ``synced``: what it holds is on disk before it takes the place.
    """
    place, name = os.path.split(os.path.abspath(path))
    folder = os.open(place, _FOLDER)
    try:
        _keep_special(name, folder)
        fd, partial = _alone(f"{name}.new", folder) if alone else nameless.create(folder)
        try:
            with open(fd, "wb") as file:
                yield file
                os.fchmod(fd, mode)
                file.flush()
                if synced:
                    os.fsync(fd)
                partial = partial or nameless.named(fd, folder)
            os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial, dir_fd=folder)  # "" is no file
            raise
    finally:
        os.close(folder)


def _keep_special(name: str, folder: int) -> None:
    """Root could put a file in the place of /dev/null, and all programs would read and fill it."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or is_device(mode, folder):
            raise OSError(errno.EINVAL, "it is no file")


def is_device(mode: int, folder: int | str) -> bool:
    """Return whether what has this mode in the folder is a device, or one of DEVICES' own links.
    Raises OSError."""
    if stat.S_ISLNK(mode):
        return os.path.samefile(folder, DEVICES)
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _alone(partial: str, folder: int) -> tuple[int, str]:
    # What is there is not written into: it may be open elsewhere.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial, dir_fd=folder)
    return os.open(partial, _ALONE, 0o600, dir_fd=folder), partial
