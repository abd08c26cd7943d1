"""The chain on disk: sealed lines at the end of the newest file. No threads, no lock."""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Sequence

import msgspec

from agentd.audit import continuity, files
from agentd.audit.errors import AuditError, LogDamaged, NoLog
from agentd.audit.files import LogFile, Mark
from agentd.audit.record import GENESIS, RecordSeal, entry, seal
from agentd.model.audit import Event, Kind, Position
from agentd.model.late_clock import LateClock

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
        self,
        directory: str,
        keep: Keep | None = None,
        clock: Callable[[], float] = time.time,
        aged: Callable[[], float] | None = None,
    ) -> None:
        """``aged`` is the clock by which files become old: as ``clock``, but for its leaps."""
        self._directory = directory
        self._keep = keep or Keep()
        self._clock = clock
        self._aged = aged or LateClock(lambda: self._keep.seconds or 0.0, clock)
        self._fd = -1
        self._file = LogFile("", 0)
        self._size = 0
        self._dirty = False  # there may be bytes behind ``_size``
        self._unsynced = b""  # the file's end, as far as it may not be on disk
        self._owed = b""  # what was written once, and must be again
        self._last = _NOTHING
        self._swept = 0
        self._names: list[int] = []  # the files that there are, by their first records
        self._stamp: tuple[int, ...] = ()  # of the directory, when they were listed
        self._place = ("", 0, 0)  # of the file that is written to: path, device, inode
        self._mark = files.MarkWriter(directory)
        self.retire_failures = 0

    @property
    def head(self) -> Position | None:
        seq, digest = self._last
        return Position(seq, digest.decode()) if seq else None

    @property
    def swept(self) -> int:
        """Executions that began before this record have ended."""
        return self._swept

    def load(self, *, accept: bool = False) -> list[Event]:
        """Find the end; the records that are owed for what was torn off it. Raises LogDamaged
        where something is gone that was written, unless that is to be ``accept``ed: then records of
        the loss are owed, and the chain goes on behind what was lost. Raises AuditError."""
        known = self._known()
        self.close()
        self._last, self._size, self._dirty = _NOTHING, 0, False
        self._unsynced = self._owed = b""
        try:
            found = files.ls(self._directory)
        except NoLog:
            found = []
        try:
            size = self._find_end(found, accept) if found else 0
            if not accept:
                continuity.check(self._directory, found, self._last, known)
            if self._size < size:
                files.cut(self._file, self._fd, self._size, size)
            owed = self._cuts() if found else []
            if accept:
                owed += self._accept(known)
                found = files.ls(self._directory)
        except (OSError, AuditError) as error:
            # What was written last is still known: the next attempt compares with it, too.
            self.close()
            self._last = (known.seq, known.hash.encode()) if known else _NOTHING
            if isinstance(error, AuditError):
                raise
            what = f"cannot read the end of the audit log {self._directory}"
            raise _failed(what, error) from error
        self._swept = known.swept if known else 0
        self._names, self._stamp = [file.first for file in found], ()
        self._remember_place()
        return owed

    def is_there(self) -> bool:
        """Return whether what was written is where it was written to, and nobody has cut it off."""
        if self._fd < 0:
            return True
        try:
            mine, there = os.fstat(self._fd), os.lstat(self._file.path)
            if not os.path.samestat(mine, there) or (
                not self._dirty and mine.st_size != self._size
            ):
                return False
            at = os.stat(self._directory)
            stamp = at.st_dev, at.st_ino, at.st_mtime_ns
            if stamp != self._stamp:
                if [file.first for file in files.ls(self._directory)] != self._names:
                    return False
                self._stamp = stamp
        except (OSError, AuditError):
            return False
        return True

    def may_be_there(self) -> bool:
        """Return the same after a glance, from any thread while another writes."""
        path, device, inode = self._place
        try:
            found = os.lstat(path) if path else None
        except OSError:
            return False
        if found is None:
            return True
        return (found.st_dev, found.st_ino) == (device, inode) and found.st_size >= self._size

    def is_current(self) -> bool:
        """Return whether nobody else has written since."""
        return self._fd >= 0 and not self._dirty and self.is_there()

    def write(self, bodies: Sequence[bytes], *, synced: bool = True) -> Written:
        """Write all of it or, where it raises OSError, nothing: on disk when it returns. Without
        ``synced`` it is in the file, and on disk with the next that is synced."""
        lines, positions = self._sealed(bodies)
        data = b"".join(lines)
        most = self._keep.file_bytes
        rotated = self._fd < 0 or (self._size > 0 and self._size + len(data) > most)
        if rotated:
            self._rotate(positions[0].seq)
        self._put(data, synced=synced)
        self._last = positions[-1].seq, positions[-1].hash.encode()
        if rotated:
            lines += self._retire()
        if synced:
            self._tell()
        return Written(positions, lines)

    def sync(self) -> None:
        """Sync what was written unsynced. Raises OSError."""
        if self._unsynced or self._owed:
            self._put(b"")
            self._tell()

    def sweep(self, seq: int) -> None:
        """Executions that began before record ``seq`` have ended."""
        self._swept = seq  # in the mark with the next that is synced

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._mark.close()

    def _remember_place(self) -> None:
        if self._fd < 0:
            self._place = ("", 0, 0)
            return
        mine = os.fstat(self._fd)
        self._place = self._file.path, mine.st_dev, mine.st_ino

    def _known(self) -> Mark | None:
        """Return what the log must hold: as its mark says, and as it was last written here."""
        kept = files.read_mark(self._directory)
        seq, digest = self._last
        if not seq or self._owed or (kept is not None and kept.seq > seq):
            return kept or continuity.of_receipts(self._directory)
        first, count = (kept.first, kept.files) if kept is not None else (0, 0)
        return Mark(first, count, seq, digest.decode(), self._swept)

    def _tell(self) -> None:
        seq, digest = self._last
        if self._names and seq:
            told = Mark(self._names[0], len(self._names), seq, digest.decode(), self._swept)
            self._mark.write(told)

    def _find_end(self, found: list[LogFile], accept: bool) -> int:
        """Find the end of the newest file; return how long it is."""
        self._file = found[-1]
        for file in found:
            continuity.check_regular(file)
        self._fd = os.open(self._file.path, _FLAGS | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        size = os.fstat(self._fd).st_size
        tail = files.find_tail(self._fd, size)
        self._size = files.behind_copies(self._fd, tail.end) if tail else 0
        if not accept:
            continuity.check_once(self._file, self._size, tail.end if tail else 0)
            continuity.check_torn(self._file, self._fd, self._size, size)
        last = tail.seal if tail else self._before(found, accept)
        if last is not None:
            self._last = last.seq, last.hash
        return size

    def _cuts(self) -> list[Event]:
        """Return the records owed for what was cut off the end: now, or by one who died, or had no
        room, before that was written down: then nothing stands behind the place yet."""
        about = {"file": self._file.name, "offset": self._size}
        return [
            Event(kind=Kind.CUT, fields={**about, "bytes": size, "moved_to": side})
            for side, size in files.torn(self._file, self._size)
        ]

    def _accept(self, known: Mark | None) -> list[Event]:
        """Return the records owed for all that is gone; the chain goes on behind that, in a new
        file."""
        if self._fd >= 0 and not self._size:
            os.unlink(self._file.path)
            self.close()
        owed, last = continuity.losses(files.ls(self._directory), self._last, known)
        if last != self._last:
            self.close()
        self._last = last
        return owed

    def _before(self, found: list[LogFile], accept: bool) -> RecordSeal | None:
        """Return the last record of the file before the newest, which is empty."""
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
        if newest.first != (last.seq if last else 0) + 1 and not accept:
            raise LogDamaged(
                f"{newest.path} does not follow on what is before it",
                cause="a file of the audit log was removed or changed",
                remediation=continuity.WAY_OUT,
            )
        return last

    def _sealed(self, bodies: Sequence[bytes]) -> tuple[list[bytes], list[Position]]:
        seq, prev = self._last
        lines, positions = [], []
        for body in bodies:
            seq += 1
            line, prev = seal(seq, prev, body)
            lines.append(line)
            positions.append(Position(seq, prev.decode()))
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
        self._fd, self._file, self._size, self._dirty = fd, LogFile(where, first), 0, False
        self._remember_place()
        if first not in self._names:
            self._names.append(first)
            self._stamp = ()

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
            self._last = positions[0].seq, positions[0].hash.encode()
            self._names, self._stamp = self._names[len(doomed) :], ()
            self._tell()  # first: one that is there yet is not missed
            for file in doomed:
                files.remove(file)
            files.sync_directory(self._directory)
        except (OSError, AuditError):
            # What was asked for is written all the same; the next new file tries again.
            self.retire_failures += 1
            return []
        return lines

    def _doomed(self) -> tuple[list[LogFile], LogFile]:
        """Return the files to delete, the oldest first, and the one that is then the oldest."""
        found = files.ls(self._directory)
        count = 0
        if self._keep.files is not None:
            count = max(0, len(found) - max(1, self._keep.files))
        if self._keep.seconds is not None:
            oldest = self._aged() - self._keep.seconds
            while count < len(found) - 1 and os.stat(found[count].path).st_mtime < oldest:
                count += 1
        return found[:count], found[count]


def _failed(what: str, error: OSError) -> AuditError:
    return AuditError(
        what,
        cause=error.strerror or str(error),
        remediation="free space on its disk and check its permissions, or see dmesg",
    )
