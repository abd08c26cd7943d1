"""The chain on disk: sealed lines at the end of the newest file. No threads, no lock."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence

import msgspec

from agentd.audit import files
from agentd.audit.errors import AuditError
from agentd.audit.files import File
from agentd.audit.record import GENESIS, Seal, entry, position, seal
from agentd.model.audit import Event, Kind, Position

_NOTHING = (0, GENESIS)
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Keep(msgspec.Struct, frozen=True):
    """``file_bytes`` begin a new file (one batch may be larger). Whole files are deleted where
    there are more than ``files``, or where they are older than ``seconds``; None keeps all."""

    file_bytes: int = 64 << 20
    files: int | None = None
    seconds: float | None = None


class Written(msgspec.Struct, frozen=True):
    positions: list[Position]  # one an entry, in their order
    lines: list[bytes]  # those, and what the chain wrote of its own


class Chain:
    """Whoever has the lock of ``directory`` may ``load`` and ``write``."""

    def __init__(
        self, directory: str, keep: Keep | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._directory = directory
        self._keep = keep or Keep()
        self._clock = clock
        self._fd = -1
        self._file = File("", 0)
        self._size = 0
        self._dirty = False  # there may be bytes behind ``_size``
        self._unsynced = b""  # the file's end, as far as it may not be on disk
        self._owed = b""  # what was written once, and must be again
        self._last = _NOTHING
        self.retire_failures = 0

    @property
    def head(self) -> Position | None:
        seq, digest = self._last
        return position(seq, digest) if seq else None

    def load(self) -> list[dict[str, object]]:
        """Find the end; what was torn off it, for a record. Raises AuditError."""
        self.close()
        self._last, self._size, self._dirty = _NOTHING, 0, False
        self._unsynced = self._owed = b""
        found = files.ls(self._directory)
        if not found:
            return []
        try:
            return self._load(found)
        except OSError as error:
            self.close()
            raise _failed(f"cannot read the end of {found[-1].path}", error) from error

    def is_current(self) -> bool:
        """Whether nobody else has written since. Raises OSError."""
        if self._fd < 0 or self._dirty:
            return False
        mine = os.fstat(self._fd)
        if mine.st_nlink == 0 or mine.st_size != self._size:
            return False
        return files.ls(self._directory)[-1].path == self._file.path

    def write(self, bodies: Sequence[bytes], *, synced: bool = True) -> Written:
        """On disk when it returns; all of it or, where it raises OSError, nothing. Without
        ``synced`` it is in the file, and on disk with the next that is synced."""
        lines, positions = self._sealed(bodies)
        data = b"".join(lines)
        rotated = self._fd < 0 or (self._size > 0 and self._size + len(data) > self._max_bytes)
        if rotated:
            self._rotate(positions[0].seq)
        self._put(data, synced=synced)
        self._advance(positions[-1])
        if rotated:
            lines += self._retire()
        return Written(positions, lines)

    def sync(self) -> None:
        """What was written without. Raises OSError."""
        if self._unsynced or self._owed:
            self._put(b"")

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def _max_bytes(self) -> int:
        return self._keep.file_bytes

    def _load(self, found: list[File]) -> list[dict[str, object]]:
        self._file = found[-1]
        self._fd = os.open(self._file.path, _FLAGS)
        size = os.fstat(self._fd).st_size
        tail = files.find_tail(self._fd, size)
        self._size = tail.end if tail else 0
        last = tail.seal if tail else self._before(found)
        if last is not None:
            self._last = last.seq, last.hash
        if self._size == size:
            return []
        side = files.cut(self._file, self._fd, self._size, size)
        return [
            {
                "file": self._file.name,
                "offset": self._size,
                "bytes": size - self._size,
                "moved_to": side,
            }
        ]

    def _before(self, found: list[File]) -> Seal | None:
        """The last record of the file before the newest, which is empty."""
        newest = found[-1]
        if len(found) == 1:
            last = None
        else:
            fd = files.open_reading(found[-2].path)
            try:
                size = os.fstat(fd).st_size
                tail = files.find_tail(fd, size)
            finally:
                os.close(fd)
            last = tail.seal if tail and tail.end == size else None
        if newest.first != (last.seq if last else 0) + 1:
            raise AuditError(
                f"{newest.path} does not follow on what is before it",
                cause="a file of the audit log was removed or changed",
                remediation="keep the directory as evidence, and give the log a new one",
            )
        return last

    def _sealed(self, bodies: Sequence[bytes]) -> tuple[list[bytes], list[Position]]:
        seq, prev = self._last
        lines, positions = [], []
        for body in bodies:
            seq += 1
            line, prev = seal(seq, prev, body)
            lines.append(line)
            positions.append(position(seq, prev))
        return lines, positions

    def _rotate(self, first: int) -> None:
        where = files.path(self._directory, first)
        try:
            fd = os.open(where, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:  # an attempt of ours that failed
            fd = os.open(where, _FLAGS)
        try:
            if os.fstat(fd).st_size:
                raise FileExistsError(f"{where} is not empty")
            files.sync_directory(self._directory)
            if self._fd >= 0:
                self.sync()
                self._undo()
                os.fchmod(self._fd, 0o400)  # a file that is full is never changed
        except BaseException:
            os.close(fd)
            raise
        self.close()
        self._fd, self._file, self._size, self._dirty = fd, File(where, first), 0, False

    def _put(self, data: bytes, *, synced: bool = True) -> None:
        self._undo()
        data = self._owed + data
        self._dirty = True
        try:
            files.write_all(self._fd, data)
            if synced:
                self._sync()
        except BaseException:
            with contextlib.suppress(OSError):
                self._undo()
            raise
        self._dirty = False
        self._size += len(data)
        self._owed = b""
        self._unsynced = b"" if synced else self._unsynced + data

    def _sync(self) -> None:
        """After a failed one nobody knows what is on the disk: all since the last is written
        again, with the next."""
        try:
            os.fdatasync(self._fd)
        except BaseException:
            self._owed = self._unsynced + self._owed
            self._size -= len(self._unsynced)
            self._unsynced = b""
            raise

    def _advance(self, last: Position) -> None:
        self._last = last.seq, last.hash.encode()

    def _undo(self) -> None:
        if self._dirty:
            os.ftruncate(self._fd, self._size)
            self._dirty = False

    def _retire(self) -> list[bytes]:
        """Delete what need not be kept, once a record that says so is on disk."""
        try:
            doomed, after = self._doomed()
            if not doomed:
                return []
            kept = files.first_line(after)
            if kept is None or kept.seq != after.first:
                raise FileNotFoundError(f"{after.path} does not begin with its record")
            about = {
                "first": doomed[0].first,
                "last": kept.seq - 1,
                "hash": kept.prev.decode(),
                "files": len(doomed),
            }
            event = Event(kind=Kind.RETIRED, fields=about)
            lines, positions = self._sealed([entry(event, self._clock()).body])
            self._put(lines[0])
            self._advance(positions[0])
            for file in doomed:
                files.remove(file)
            files.sync_directory(self._directory)
        except (OSError, AuditError):
            # What was asked for is written all the same; the next new file tries again.
            self.retire_failures += 1
            return []
        return lines

    def _doomed(self) -> tuple[list[File], File]:
        """The files to delete, the oldest first, and the one that is then the oldest."""
        found = files.ls(self._directory)
        count = 0
        if self._keep.files is not None:
            count = max(0, len(found) - max(1, self._keep.files))
        if self._keep.seconds is not None:
            oldest = self._clock() - self._keep.seconds
            while count < len(found) - 1 and os.stat(found[count].path).st_mtime < oldest:
                count += 1
        return found[:count], found[count]


def _failed(what: str, error: OSError) -> AuditError:
    return AuditError(
        what,
        cause=error.strerror or str(error),
        remediation="free space on its disk and check its permissions, or see dmesg",
    )
