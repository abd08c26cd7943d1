"""New files that have no name until they are whole (O_TMPFILE): a killed process leaves none.

Where the file system has no such files they have a temporary name all the time.
"""

import errno
import os

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
# EISDIR, ENOENT: kernels and file systems that do not know the flag (open(2)).
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


def temporary_name() -> str:
    """Returns a name of agentd's own that nothing has yet."""
    return f".agentd-{os.urandom(8).hex()}"


def create(folder: int) -> tuple[int, str]:
    """Makes a file to be written, open, and its temporary name, empty where it has none. Raises
    OSError."""
    try:
        return os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=folder), ""
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    name = temporary_name()
    return os.open(name, _NEW, 0o600, dir_fd=folder), name


def named(fd: int, folder: int) -> str:
    """Gives a temporary name to what ``create`` made without one: rename(2) wants one.

    Before it is anybody else's, whose files not everybody may link. Raises OSError.
    """
    name = temporary_name()
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=folder, follow_symlinks=True)
    return name
