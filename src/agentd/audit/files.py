"""The log's files: ``audit-SEQ.jsonl``, named by the sequence number of their first record; and
``DIRECTORY.head``, beside their directory, the mark of what they held when last written to.

A log that was cut off, or whose files are gone, looks like a shorter one. The mark tells. It is
written after what it tells of is on disk, so it never knows more than the log; whoever may write
the log may write the mark, too: for those a head that is kept elsewhere is the witness.
"""

import contextlib
import errno
import os
import re
import stat
from typing import NamedTuple

import msgspec

from agentd.audit.errors import AuditError, NoLog
from agentd.audit.record import MAX_LINE, RecordSeal, unseal
from agentd.model import typed

_NAME = re.compile(r"audit-([0-9]{20})\.jsonl")
_TORN = ".torn-"
NAME_IT = (
    "name the log's directory with --dir (a daemon's is STATE/audit), or the daemon with --url"
)
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a fifo",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
}
MAX_TORN = 1000  # side files of one file
_MARK_BYTES = 256  # one write, in one sector


class LogFile(NamedTuple):
    path: str
    first: int  # sequence number of its first record

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


class Tail(NamedTuple):
    """The last whole record of a file: ``end`` is the offset behind it."""

    end: int
    seal: RecordSeal


def path(directory: str, first: int) -> str:
    return os.path.join(directory, f"audit-{first:020}.jsonl")


def ls(directory: str) -> list[LogFile]:
    """List the log's files, the oldest first. Raises NoLog, AuditError."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoLog(
            f"no audit log here: {directory}", cause=error.strerror or "", remediation=NAME_IT
        ) from error
    except OSError as error:
        raise unreadable(directory, error) from error
    found = [
        LogFile(os.path.join(directory, name), int(match[1]))
        for name in names
        if (match := _NAME.fullmatch(name))
    ]
    return sorted(found, key=lambda file: file.first)


def unreadable(where: str, error: OSError) -> AuditError:
    return AuditError(
        f"cannot read the audit log {where}",
        cause=error.strerror or "",
        remediation=f"{NAME_IT}; and be allowed to read it",
    )


def open_reading(where: str) -> int:
    """Open a regular file, and nothing else, to be read. Raises OSError."""
    # Non-blocking: a fifo with such a name must not hold up who reads it.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(where, flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", where)
    return fd


def irregular(where: str) -> str:
    """Return what is there in place of a regular file, with its article; "" where one is there,
    or nothing."""
    try:
        mode = os.lstat(where).st_mode
    except OSError:
        return ""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "a special file")


def find_tail(fd: int, size: int) -> Tail | None:
    """Find the last whole record of ``size`` bytes, from their end."""
    window = MAX_LINE
    while True:
        begin = max(0, size - window)
        data = os.pread(fd, size - begin, begin)
        stop = data.rfind(b"\n")
        while stop >= 0:
            start = data.rfind(b"\n", 0, stop) + 1
            if start == 0 and begin > 0:
                break  # it may begin before the window
            seal = unseal(data[start : stop + 1])
            if seal is not None:
                return Tail(begin + stop + 1, seal)
            stop = start - 1
        if begin == 0:
            return None
        window *= 4


def behind_copies(fd: int, end: int) -> int:
    """Return where a file's last line, which ends at ``end``, ends first: it may stand there more
    than once. Raises OSError."""
    while True:
        begin = max(0, end - 2 * MAX_LINE)
        lines = os.pread(fd, end - begin, begin).split(b"\n")
        if len(lines) < 3 or lines[-2] != lines[-3]:
            return end
        end -= len(lines[-2]) + 1


def find_hash(found: list[LogFile], seq: int) -> bytes | None:
    """Return the hash of record ``seq``, looked for in the file that should hold it; None without
    it."""
    holder = next((file for file in reversed(found) if file.first <= seq), None)
    if holder is None:
        return None
    want = b'{"seq":%d,' % seq
    with open(open_reading(holder.path), "rb") as file:
        while line := file.readline(MAX_LINE):
            if line.startswith(want):
                seal = unseal(line)
                return seal.hash if seal else None
    return None


def cut(file: LogFile, fd: int, end: int, size: int) -> None:
    """Move what lies behind ``end`` into a file beside it. Raises OSError."""
    _set_aside(file.path, end, fd, size)
    os.ftruncate(fd, end)
    os.fsync(fd)


def torn(file: LogFile, end: int) -> list[tuple[str, int]]:
    """List what was moved aside from behind ``end``: names and sizes. Raises OSError."""
    directory, begin = os.path.dirname(file.path), f"{file.name}{_TORN}{end}-"
    names = sorted(name for name in os.listdir(directory) if name.startswith(begin))
    return [(name, os.lstat(os.path.join(directory, name)).st_size) for name in names]


def remove(file: LogFile) -> None:
    """Remove it with its side files. Raises OSError."""
    directory = os.path.dirname(file.path)
    for name in os.listdir(directory):
        if name.startswith(file.name + _TORN):
            os.unlink(os.path.join(directory, name))
    os.unlink(file.path)


def sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def first_line(file: LogFile) -> RecordSeal | None:
    fd = open_reading(file.path)
    try:
        data = os.pread(fd, MAX_LINE, 0)
    finally:
        os.close(fd)
    return unseal(data[: data.find(b"\n") + 1])


def write_all(fd: int, data: bytes) -> None:
    """A full disk shows as a short write first, as an error then."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _set_aside(whole: str, end: int, fd: int, size: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for number in range(MAX_TORN):
        side = f"{whole}{_TORN}{end}-{number}"
        with contextlib.suppress(FileExistsError):
            out = os.open(side, flags, 0o600)
            break
    else:
        raise FileExistsError(f"there are {MAX_TORN} side files of {whole}")
    try:
        while end < size and (data := os.pread(fd, min(1 << 20, size - end), end)):
            write_all(out, data)
            end += len(data)
        os.fsync(out)
    except BaseException:  # of a full disk: each attempt would leave another
        os.unlink(side)
        raise
    finally:
        os.close(out)
    sync_directory(os.path.dirname(whole))


class Mark(msgspec.Struct, frozen=True):
    """Record ``seq`` with ``hash`` was the last; ``first`` began the oldest of ``files`` files.
    Executions that began before ``swept`` have ended."""

    first: int
    files: int
    seq: int
    hash: str
    swept: int = 0


_decode = typed.decoder(Mark).decode


def _mark(directory: str) -> str:
    return f"{directory.rstrip('/')}.head"


def read_mark(directory: str) -> Mark | None:
    """Read it; None where there is none, or one that a loss of power has torn."""
    try:
        fd = os.open(_mark(directory), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _decode(os.pread(fd, _MARK_BYTES, 0).strip(b" \n\0"))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    finally:
        os.close(fd)


class MarkWriter:
    """Keeps the file open. What cannot be written leaves the mark older, and is no error."""

    def __init__(self, directory: str) -> None:
        self._path = _mark(directory)
        self._fd = -1

    def write(self, mark: Mark) -> None:
        with contextlib.suppress(OSError):
            if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
                self.close()
            if self._fd < 0:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o600)
            os.pwrite(self._fd, msgspec.json.encode(mark).ljust(_MARK_BYTES - 1) + b"\n", 0)

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
