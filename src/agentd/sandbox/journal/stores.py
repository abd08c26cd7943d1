"""Where a journal keeps what it has: the newest in memory, not thread-safe, with the journal's lock
held around it; all of it in segments on disk, written at the end of the newest, dropped whole from
the oldest."""

import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence

from agentd.sandbox.journal import record
from agentd.sandbox.journal.events import STREAMS, JournalEntry
from agentd.sandbox.journal.record import MAX_LENGTH, Start

_SMALL = 16 << 10  # bytes; shorter pieces are gathered
_OVERHEAD = 256  # bytes that an entry costs beside its data


class JournalRing:
    """Entries are numbered; those before ``stored`` are in the file, or known to be lost."""

    def __init__(self, offsets: tuple[int, ...] = (0,) * len(STREAMS), total: int = 0) -> None:
        self.entries: deque[JournalEntry] = deque()
        self.first = 0  # number of the oldest entry
        self.stored = 0
        self.size = 0
        self.offsets = list(offsets)  # of each stream's next byte
        self.total = total
        self.stored_total = total
        self._tail = bytearray()
        self._tail_stream = 0

    @property
    def next(self) -> int:
        """Returns the number that the next entry will have."""
        return self.first + len(self.entries)

    @property
    def start_total(self) -> int:
        return self.entries[0].total if self.entries else self.total - len(self._tail)

    @property
    def pending(self) -> int:
        """Counts the bytes that are not in the file."""
        return self.total - self.stored_total

    def start_offset(self, stream: int) -> int:
        """Return the number of the oldest byte of the stream that is here."""
        for entry in self.entries:
            if entry.stream == stream:
                return entry.offset
        return self.offsets[stream] - (len(self._tail) if stream == self._tail_stream else 0)

    def append(self, stream: int, data: bytes) -> None:
        if self._tail and (stream != self._tail_stream or len(data) >= _SMALL):
            self.seal()
        if len(data) < _SMALL:
            self._tail += data
            self._tail_stream = stream
            self.offsets[stream] += len(data)
            self.total += len(data)
            self.size += len(data)
            if len(self._tail) >= _SMALL:
                self.seal()
            return
        for begin in range(0, len(data), MAX_LENGTH):
            piece = data if len(data) <= MAX_LENGTH else data[begin : begin + MAX_LENGTH]
            self._add(JournalEntry(self.total, stream, self.offsets[stream], len(piece), piece))
            self.offsets[stream] += len(piece)
            self.total += len(piece)
            self.size += len(piece)

    def lose(self, stream: int, length: int, reason: str) -> None:
        """Note that bytes never came here."""
        self.seal()
        self._add(JournalEntry(self.total, stream, self.offsets[stream], length, b"", reason))
        self.offsets[stream] += length
        self.total += length

    def seal(self) -> None:
        """Make the tail an entry."""
        if self._tail:
            data, stream = bytes(self._tail), self._tail_stream
            self._tail.clear()
            length = len(data)
            self._add(
                JournalEntry(
                    self.total - length, stream, self.offsets[stream] - length, length, data
                )
            )

    def unstored(self, limit: int) -> list[JournalEntry]:
        """Returns the oldest that are not in the file, to about ``limit`` bytes. Seals the tail."""
        self.seal()
        found, size = [], 0
        for index in range(self.stored - self.first, len(self.entries)):
            found.append(self.entries[index])
            size += self.entries[index].length
            if size >= limit:
                break
        return found

    def mark_stored(self, count: int) -> None:
        for _ in range(count):
            entry = self.entries[self.stored - self.first]
            self.stored_total = entry.total + entry.length
            self.stored += 1

    def evict(self, capacity: int, may_lose: bool, writing: int) -> Iterator[JournalEntry]:
        """Make room; yields what goes unstored, if any may. Those below ``writing`` stay."""
        while self.size > capacity and self.entries:
            if self.first >= self.stored:
                if not may_lose or self.first < writing:
                    return
                self.mark_stored(1)
                yield self._drop()
            else:
                self._drop()

    def at(self, total: int) -> int:
        """Returns the number of the entry that holds this place, or the first behind it."""
        number = self.first
        for entry in self.entries:
            if entry.total + entry.length > total:
                break
            number += 1
        return number

    def _add(self, entry: JournalEntry) -> None:
        self.entries.append(entry)
        self.size += _OVERHEAD

    def _drop(self) -> JournalEntry:
        entry = self.entries.popleft()
        self.first += 1
        self.size -= len(entry.data) + _OVERHEAD
        return entry


MIN_BYTES = 4 << 20  # a segment, an eighth of it, must hold a write
_SEGMENTS = 8
_BEGIN = 5  # the first, where they are kept: more than two streams of 16 MiB, of 64
_NUMBER = re.compile(r"\.(\d{6,})")


class Segment:
    """``size`` counts the bytes of whole records: what a reader may look at."""

    __slots__ = ("path", "size", "start")

    def __init__(self, path: str, start: Start, size: int) -> None:
        self.path = path
        self.start = start
        self.size = size


class SegmentFiles:
    """Segments are ``prefix``.000001 and on. One writer at a time; ``segments`` may be read
    meanwhile, by whoever takes a copy of it. ``keeps_begin``: the first of them stay."""

    def __init__(self, prefix: str, max_bytes: int) -> None:
        self.prefix = prefix
        self.max_bytes = max(max_bytes, MIN_BYTES)
        self.segments: list[Segment] = []
        self.keeps_begin = False
        self._last = 0
        self._removed = False
        self._fd = -1

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)

    def load(self) -> None:
        """Find what an earlier process has written. Raises OSError."""
        folder, name = os.path.split(self.prefix)
        found = []
        for file in os.listdir(folder) if os.path.isdir(folder) else ():
            match = _NUMBER.fullmatch(file, len(name)) if file.startswith(name) else None
            if match is not None:
                found.append((int(match[1]), os.path.join(folder, file)))
        for number, path in sorted(found):
            self._last = number
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                start = record.decode_header(os.pread(fd, record.HEADER_SIZE, 0))
                if start is not None and start.number == number:
                    self.segments.append(Segment(path, start, os.fstat(fd).st_size))
            finally:
                os.close(fd)

    def write(self, buffers: Sequence[bytes], offsets: tuple[int, ...], total: int) -> None:
        """Whole records that begin at ``offsets``: all of them, or none. Raises OSError."""
        if self._removed:
            return
        length = sum(map(len, buffers))
        if self._fd >= 0 and self.segments[-1].size + length > self.max_bytes // _SEGMENTS:
            self.end_segment()
        if self._fd < 0:
            self._begin_segment(Start(self._last + 1, offsets, total))
        segment = self.segments[-1]
        try:
            _write_all(self._fd, buffers, segment.size)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, segment.size)
            raise
        segment.size += length
        oldest = _BEGIN if self.keeps_begin else 0
        while self.size > self.max_bytes and len(self.segments) > oldest + 1:
            with contextlib.suppress(OSError):
                os.unlink(self.segments[oldest].path)
            del self.segments[oldest]

    def end_segment(self) -> None:
        """Let go of the descriptor; what is written next begins a new file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def remove(self) -> None:
        """Delete them; what is written from now on is nowhere."""
        self._removed = True
        self.end_segment()
        for segment in self.segments:
            with contextlib.suppress(OSError):
                os.unlink(segment.path)
        self.segments.clear()

    def _begin_segment(self, start: Start) -> None:
        path = f"{self.prefix}.{start.number:06}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            fd = os.open(path, flags, 0o600)
        try:
            _write_all(fd, [record.encode_header(start)], 0)
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise
        self._fd = fd
        self._last = start.number
        self.segments.append(Segment(path, start, record.HEADER_SIZE))


def _write_all(fd: int, buffers: Sequence[bytes], position: int) -> None:
    """A full disk shows as a short write first, as an error then."""
    data = b"".join(buffers) if len(buffers) > 64 else None
    done = os.pwrite(fd, data, position) if data else os.pwritev(fd, buffers, position)
    length = sum(map(len, buffers))
    if done < length:
        data = data or b"".join(buffers)
        while done < length:
            done += os.pwrite(fd, memoryview(data)[done:], position + done)
