"""New files that are seen once they are whole, and of which a killed process leaves none.

They have no name while they are written, where the file system can do that (``linux/nameless.py``),
and a temporary one for a moment after, or all the time where it cannot. Such a name, an older
agentd's too, is removed by the next ``sweep`` of that folder.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat

from agentd.linux import nameless

_NAME = re.compile(r"\.agentd-[0-9a-f]{16}")


def create(folder: int) -> tuple[int, str]:
    """Makes a file to be written, open, and its temporary name, empty where it has none.

    It is locked for as long as it is open: nobody sweeps it away. Raises OSError.
    """
    fd, name = nameless.create(folder)
    with contextlib.suppress(OSError):  # not every file system has locks
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd, name


def sweep(folder: int) -> None:
    """Remove what killed processes have left in it; quiet where it cannot."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if _NAME.fullmatch(name):
                with contextlib.suppress(OSError):
                    if not _in_use(name, folder):
                        os.unlink(name, dir_fd=folder)


def _in_use(name: str, folder: int) -> bool:
    """Return whether somebody still writes it. Raises OSError for what is neither a file nor a
    link."""
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISLNK(found.st_mode):
        return False
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not one of ours", name)
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
