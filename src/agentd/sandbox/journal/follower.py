"""One reader of a journal: from any byte on, at its own pace, live at the end."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from agentd.model.errors import InvalidInput
from agentd.sandbox.journal.events import (
    LIMIT,
    STREAMS,
    End,
    Event,
    Gap,
    JournalChunk,
    JournalEntry,
)
from agentd.sandbox.journal.reader import JournalReader

if TYPE_CHECKING:
    from agentd.sandbox.journal.journal import Journal

_ANYWHERE = 1 << 63
_EACH = 256  # bytes that an event takes beside its data


class JournalFollower:
    """Used by one thread at a time, ``wait`` excepted. ``cursor`` may be kept to go on from.

    It is made in a thread that may wait, for it may have to look through a file first; ``read``
    never waits for output. ``notify`` is called, by the thread that appends, once there
    is more after a ``read`` has found no more: it must be quick and raise nothing.
    """

    def __init__(
        self,
        journal: "Journal",
        cursor: Mapping[str, int],
        streams: Sequence[str],
        notify: Callable[[], None] | None,
    ) -> None:
        self._event = threading.Event()
        self.notify = notify or self._event.set
        self.armed = False
        self.ended = False
        self._journal = journal
        self._wanted = [name in streams for name in STREAMS]
        self._cursors = [_offset(cursor, name) for name in STREAMS]
        self._reader = JournalReader(journal.files)
        self._total = 0  # what is before it was seen, or is not wanted
        self._number = -1  # of the next entry in memory, or -1 while the files are read
        with journal.lock:
            ring = journal.ring
            behind = any(
                wanted and ring.start_offset(stream) > self._cursors[stream]
                for stream, wanted in enumerate(self._wanted)
            )
            if not behind:
                self._number = ring.first
        if behind:
            wanted = zip(self._wanted, self._cursors, strict=True)
            self._reader.seek([at if yes else None for yes, at in wanted], _ANYWHERE)
            # A segment may have 200,000 records: they are not for an event loop to pass over.
            self._reader.pass_over(self._wanted, self._cursors)
            self._reader.rest()

    @property
    def cursor(self) -> dict[str, int]:
        """Return for each stream that is followed the number of the byte that comes next."""
        pairs = zip(STREAMS, self._wanted, self._cursors, strict=True)
        return {name: at for name, wanted, at in pairs if wanted}

    def read(self, limit: int = 256 << 10) -> list[Event]:
        """Return what is there now, about ``limit`` bytes at most, what each event takes among
        them; [] if nothing is, or after the end.

        To be called until it is []: only then is ``notify`` called for more. The last event of
        all is End.
        """
        events: list[Event] = []
        size = 0
        self._event.clear()
        while size < limit and not self.ended:
            entry = self._from_memory() if self._number >= 0 else self._from_files()
            if entry is None:
                if self._number >= 0 and self._is_over(events):
                    break
                continue
            size += self._tell(entry, events) + _EACH
        return events

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is more, for one without ``notify``; False if there is not yet."""
        return not self.armed or self._event.wait(timeout)

    def close(self) -> None:
        """Ends it; idempotent."""
        self._journal.leave(self)
        self._reader.rest()

    def __enter__(self) -> "JournalFollower":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _from_memory(self) -> JournalEntry | None:
        """The next entry; None at the end, or where it has been dropped from memory."""
        journal = self._journal
        with journal.lock:
            ring = journal.ring
            ring.seal()
            while self._number < ring.next:
                if self._number < ring.first:
                    self._number = -1
                    self._reader.seek([None] * len(STREAMS), self._total)
                    return None
                entry = ring.entries[self._number - ring.first]
                self._number += 1
                self._total = entry.total + entry.length
                if self._is_new(entry):
                    return entry
            self.armed = True
            return None

    def _from_files(self) -> JournalEntry | None:
        """The next entry; None where memory goes on from here."""
        journal = self._journal
        with journal.lock:
            oldest = journal.ring.start_total
            if self._total >= oldest:
                self._enter_memory()
                return None
        entry = self._reader.next(self._wanted, self._cursors)
        if entry is not None:
            self._total = entry.total + entry.length
            return entry
        with journal.lock:
            # All that was in the files is read. What memory has let go of since is there too.
            if journal.ring.start_total == oldest:
                self._total = max(self._total, oldest)
                self._enter_memory()
        return None

    def _enter_memory(self) -> None:
        self._number = self._journal.ring.at(self._total)
        self._reader.rest()

    def _is_new(self, entry: JournalEntry) -> bool:
        end = entry.offset + entry.length
        return self._wanted[entry.stream] and end > self._cursors[entry.stream]

    def _tell(self, entry: JournalEntry, events: list[Event]) -> int:
        stream, name = entry.stream, STREAMS[entry.stream]
        self._jump(stream, entry.offset, events)
        cursor = self._cursors[stream]
        skip = cursor - entry.offset
        if entry.reason:
            events.append(Gap(name, cursor, entry.length - skip, entry.reason))
        else:
            events.append(JournalChunk(name, cursor, entry.data[skip:] if skip else entry.data))
        self._cursors[stream] = entry.offset + entry.length
        return entry.length - skip

    def _jump(self, stream: int, offset: int, events: list[Event]) -> None:
        """Tell of what is missing before ``offset``, if anything is."""
        cursor = self._cursors[stream]
        if offset > cursor:
            why = self._why(stream, cursor)
            events.append(Gap(STREAMS[stream], cursor, offset - cursor, why))
            self._cursors[stream] = offset

    def _is_over(self, events: list[Event]) -> bool:
        """Return whether there is nothing more now; tells the end if it has come."""
        journal = self._journal
        with journal.lock:
            if not self.armed:
                return False
            info, ends = journal.info, list(journal.ring.offsets)
        if info is not None:
            for stream, end in enumerate(ends):
                if self._wanted[stream]:
                    self._jump(stream, end, events)
            self.ended = True
            events.append(End(info))
        return True

    def _why(self, stream: int, offset: int) -> str:
        loss = self._journal.loss_at(stream, offset)
        trouble, self._reader.trouble = self._reader.trouble, ""
        return loss or trouble or LIMIT


def _offset(cursor: Mapping[str, int], name: str) -> int:
    value = cursor.get(name, 0)
    if not 0 <= value < 1 << 62:
        raise InvalidInput(
            f"the cursor of {name} is {value}", remediation="give the number of a byte, from 0 on"
        )
    return value
