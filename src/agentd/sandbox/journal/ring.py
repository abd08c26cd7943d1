"""The newest output in memory. Not thread-safe: the journal's lock is held around it."""

from collections import deque
from collections.abc import Iterator

from agentd.sandbox.journal.events import STREAMS, JournalEntry
from agentd.sandbox.journal.record import MAX_LENGTH

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
        """The number that the next entry will have."""
        return self.first + len(self.entries)

    @property
    def start_total(self) -> int:
        return self.entries[0].total if self.entries else self.total - len(self._tail)

    @property
    def pending(self) -> int:
        """Bytes that are not in the file."""
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
        """The oldest that are not in the file, to about ``limit`` bytes. Seals the tail."""
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
        """The number of the entry that holds this place, or the first behind it."""
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
