"""The few file operations that cgroupfs needs; errors carry the path."""

import errno
import os
from collections.abc import Collection, Iterator

_PAGE = 4096
_MAX_BYTES = 1 << 20


def write(directory: str, name: str, value: int | str) -> None:
    """Writes a value. Raises FileNotFoundError where the file, or meanwhile its group, is gone."""
    path = f"{directory}/{name}"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    except OSError as error:
        # The group was removed while its file was open: to the caller, no other than before.
        gone = error.errno == errno.ENODEV
        raise OSError(errno.ENOENT if gone else error.errno, error.strerror, path) from error
    finally:
        os.close(fd)


def write_if_present(directory: str, name: str, value: int | str) -> bool:
    """Writes; returns False where the kernel has no such file."""
    try:
        write(directory, name, value)
    except FileNotFoundError:
        return False
    return True


def read(directory: str, name: str) -> str:
    """Returns the file's text, at most 1 MiB of it; "" where it does not exist (any more)."""
    try:
        # Not open(): this is on the way of every command, and that costs three times as much.
        fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        parts: list[bytes] = []
        try:
            # The kernel gives whole lines of at most a page a read: a short one is not the last.
            while len(parts) * _PAGE < _MAX_BYTES and (data := os.read(fd, _PAGE)):
                parts.append(data)
        finally:
            os.close(fd)
        return b"".join(parts).decode("ascii", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno == errno.ENODEV:  # the group was removed while its file was open
            return ""
        raise


def read_int(directory: str, name: str) -> int | None:
    text = read(directory, name).strip()
    return int(text) if text.isdecimal() else None


def read_field(directory: str, name: str, field: str) -> int | None:
    """Returns one number of a file of ``field number`` lines."""
    for line in read(directory, name).splitlines():
        word, _, number = line.partition(" ")
        if word == field:
            return int(number)
    return None


def read_sum(directory: str, name: str, fields: Collection[str]) -> int:
    """Adds several numbers of such a file; what is not there counts as 0."""
    pairs = (line.partition(" ") for line in read(directory, name).splitlines())
    return sum(int(number) for word, _, number in pairs if word in fields)


def ancestors(directory: str) -> Iterator[str]:
    """Returns the groups that hold a group, the nearest first."""
    directory = os.path.dirname(directory)
    while os.path.exists(f"{directory}/cgroup.procs"):
        yield directory
        directory = os.path.dirname(directory)


def subdirectories(directory: str) -> list[str]:
    """Returns their names; [] where the directory does not exist."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def deepest_first(directory: str) -> list[str]:
    """Lists the directory and all below it, each after what it holds; [] where there is none.
    Raises OSError where it cannot be looked at: what is not seen is not gone."""
    return [path for path, _, _ in os.walk(directory, topdown=False, onerror=_unless_gone)]


def _unless_gone(error: OSError) -> None:
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV):
        raise error


def make_dir(path: str) -> None:
    os.mkdir(path, 0o755)


def remove_dir(path: str) -> None:
    os.rmdir(path)
