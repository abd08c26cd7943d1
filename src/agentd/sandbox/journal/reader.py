"""Reads a journal's records from its files, from a segment's begin or from where it was."""

import os
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from agentd.sandbox.journal import record
from agentd.sandbox.journal.events import CORRUPT, CRASH, JournalEntry
from agentd.sandbox.journal.record import DATA, END, Head, Start
from agentd.sandbox.journal.stores import Segment, SegmentFiles

_AHEAD = 64 << 10


class ReadPosition(NamedTuple):
    number: int  # of the segment
    position: int


class JournalReader:
    """``trouble`` says why what follows may have a gap before it, after damage was met."""

    def __init__(self, files: SegmentFiles) -> None:
        self._files = files
        self._segment: Segment | None = None
        self._fd = -1
        self._position = 0
        self._buffer = b""
        self._buffer_at = 0
        self._missing = False
        self.total = 0  # of what comes next, at least
        self.trouble = ""
        self.info: bytes | None = None  # of the END record, once met

    @property
    def place(self) -> ReadPosition | None:
        segment = self._segment
        return None if segment is None else ReadPosition(segment.start.number, self._position)

    def seek(self, offsets: Sequence[int | None], total: int) -> None:
        """Go to the last segment that begins at or before all of these; None matters not.

        Stays where it is if that is nearer.
        """
        segments = list(self._files.segments)
        best = segments[0] if segments else None
        for segment in segments:
            start = segment.start
            pairs = zip(start.offsets, offsets, strict=True)
            if start.total <= total and all(o is None or s <= o for s, o in pairs):
                best = segment
        here = self._segment
        if best is None:
            return
        if here is None or here.start.number < best.start.number or self.total > total:
            self._enter(best)

    def next(self, wanted: Sequence[bool], cursors: Sequence[int]) -> JournalEntry | None:
        """Reads the next entry of a wanted stream that goes beyond its cursor; None at the end."""
        while (head := self.pass_over(wanted, cursors)) is not None:
            payload_at = self._position + record.HEAD_SIZE
            self._pass(head)
            payload = self._bytes(payload_at, head.stored)
            if head.kind == END:
                if zlib.crc32(payload) == head.crc:
                    self.info = payload
                continue
            entry = record.decode(head, payload)
            if entry is None:
                self.trouble = CORRUPT
            elif wanted[entry.stream] and entry.offset + entry.length > cursors[entry.stream]:
                self.total = entry.total + entry.length
                return entry
        return None

    def pass_over(self, wanted: Sequence[bool], cursors: Sequence[int]) -> Head | None:
        """Go to the next record that ``next`` looks into, and return its head; None at the end."""
        while True:
            head = self._head()
            if head is None:
                if not self._advance():
                    return None
            elif head.kind == DATA and (
                not wanted[head.stream] or head.offset + head.length <= cursors[head.stream]
            ):
                self._pass(head)
            else:
                return head

    def survey(self) -> Start:
        """Return where the next segment is to begin. What a crash left half written is cut off."""
        segment = self._files.segments[-1]
        self._enter(segment)
        offsets, total = list(segment.start.offsets), segment.start.total
        good = self._position
        while (head := self._head()) is not None:
            at = self._position + record.HEAD_SIZE
            entry = None
            if head.kind == record.GAP:
                entry = record.decode(head, self._bytes(at, head.stored))
            elif head.kind == END and zlib.crc32(self._bytes(at, head.stored)) == head.crc:
                self.info = self._bytes(at, head.stored)
            length = head.length if entry is None else entry.length
            if head.kind != END:
                offsets[head.stream] = max(offsets[head.stream], head.offset + length)
            total = max(total, head.total + length)
            self._position = good = at + head.stored
        segment.size = good
        self.rest()
        return Start(segment.start.number + 1, tuple(offsets), total)

    def rest(self) -> None:
        """Let go of the descriptor, not of the place."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._buffer = b""

    def _enter(self, segment: Segment) -> None:
        self.rest()
        self._missing = False
        self._segment = segment
        self._position = record.HEADER_SIZE
        self.total = segment.start.total

    def _advance(self) -> bool:
        """Go to the next segment that is there; False at the end of the newest."""
        here = self._segment
        for segment in list(self._files.segments):
            if here is None or segment.start.number > here.start.number:
                self._enter(segment)
                return True
        return False

    def _pass(self, head: Head) -> None:
        self._position += record.HEAD_SIZE + head.stored
        self.total = head.total + head.length

    def _head(self) -> Head | None:
        """Read the record's head; None where the segment ends, or is damaged from here on."""
        segment = self._segment
        if segment is None or self._position >= segment.size:
            return None
        head = record.decode_head(self._bytes(self._position, record.HEAD_SIZE))
        left = segment.size - self._position - record.HEAD_SIZE
        if head is None or head.stored > left:
            # A record that was cut off is the last that a crash left.
            if not self._missing:
                self.trouble = CRASH if left < 0 or head is not None else CORRUPT
            self._position = segment.size
            return None
        return head

    def _bytes(self, position: int, length: int) -> bytes:
        begin = position - self._buffer_at
        if begin < 0 or begin + length > len(self._buffer):
            self._fill(position, max(length, _AHEAD))
            begin = 0
        return self._buffer[begin : begin + length]

    def _fill(self, position: int, length: int) -> None:
        """Never beyond what is published: a record may be half written there."""
        segment = self._segment
        self._buffer, self._buffer_at = b"", position
        if segment is None:
            return
        try:
            if self._fd < 0:
                self._fd = os.open(segment.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._buffer = os.pread(self._fd, min(length, segment.size - position), position)
        except FileNotFoundError:  # the oldest were dropped meanwhile: told as a gap
            self._missing = True
        except OSError:
            self.trouble = CORRUPT
