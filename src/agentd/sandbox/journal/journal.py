"""The output of one process: appended as it comes, kept in memory and in files."""

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from agentd.model.errors import InvalidInput, Refused
from agentd.sandbox.journal import record
from agentd.sandbox.journal.events import (
    DISK_ERROR,
    DISK_FULL,
    STREAMS,
    Gap,
    JournalChunk,
    JournalEntry,
)
from agentd.sandbox.journal.follower import JournalFollower
from agentd.sandbox.journal.reader import JournalReader
from agentd.sandbox.journal.stores import JournalRing, SegmentFiles

MAX_FOLLOWERS = 1024
_BLOCK = 128 << 10  # bytes that are written to the file at once, by whoever appends
_RETRY = 0.25  # seconds between attempts to write to a disk that refuses
_MAX_LOSSES = 64
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INDEX = {name: index for index, name in enumerate(STREAMS)}


class Journal:
    """Thread-safe; one thread appends, not an event loop's: now and then it compresses and writes,
    as a disk that is slow holds up the process. No follower ever does.

    Small pieces reach the file when ``flush`` is called: ``on_dirty`` is, when there are some. A
    disk that refuses costs the oldest bytes once ``memory`` is full of what it has not taken; their
    place is told as a Gap, and the process never notices.
    """

    def __init__(
        self,
        prefix: str,
        *,
        memory: int = 1 << 20,
        max_bytes: int = 64 << 20,
        on_dirty: "Callable[[Journal], None]" = lambda journal: None,
        fresh: bool = False,
    ) -> None:
        """``prefix``: path of its files, to which numbers are added; what an earlier process wrote
        is continued, unless it is ``fresh`` and there can be none. ``max_bytes`` of files,
        compressed, and one write. Raises OSError if they cannot be read.
        """
        self.lock = threading.Lock()  # the ring, the followers and what follows here
        self.files = SegmentFiles(prefix, max_bytes)
        self.ring = JournalRing()
        self.info: bytes | None = None
        self._io = threading.Lock()  # the files; taken before ``lock``
        self._memory = memory
        self._on_dirty = on_dirty
        self._dirty = False
        self._followers: list[JournalFollower] = []
        self._losses: list[JournalEntry] = []
        self._unwritten: list[JournalEntry] = []  # losses that the files do not tell of yet
        self._writing = 0  # entries below it are being written
        self._failing = ""
        self._retry_at = 0.0
        self._end_written = False
        if not fresh:
            self.files.load()
        if self.files.segments:
            reader = JournalReader(self.files)
            start = reader.survey()
            self.ring = JournalRing(start.offsets, start.total)
            self.info = reader.info
            self._end_written = self.info is not None
        self._written = list(self.ring.offsets)  # in the files, or told there as lost

    @property
    def offsets(self) -> dict[str, int]:
        """Return for each stream the number of the byte that comes next: where to attach again."""
        with self.lock:
            return dict(zip(STREAMS, self.ring.offsets, strict=True))

    @property
    def losses(self) -> list[Gap]:
        """Tells what the disk refused since it was opened, the newest episodes."""
        with self.lock:
            return [Gap(STREAMS[e.stream], e.offset, e.length, e.reason) for e in self._losses]

    def append(self, stream: str, data: bytes) -> None:
        """Append bytes of ``stream``, "stdout", "stderr" or "pty"."""
        index = _INDEX[stream]
        with self.lock:
            self._check_open()
            if data:
                self.ring.append(index, data)
            full = self.ring.pending >= _BLOCK
            waiting = self._changed()
        _call(waiting)
        if full:
            self._drain()

    def skip(self, stream: str, length: int, reason: str) -> None:
        """Note bytes of ``stream`` that never came here: a gap, for this reason."""
        with self.lock:
            self._check_open()
            self.ring.lose(_INDEX[stream], length, reason)
            waiting = self._changed()
        _call(waiting)

    def finish(self, info: bytes = b"") -> None:
        """Ends it with its process. ``info``, 64 KiB at most, is given to followers; idempotent."""
        if len(info) > record.MAX_INFO:
            raise InvalidInput(f"what ends a journal is over {record.MAX_INFO} bytes")
        with self.lock:
            if self.info is not None:
                return
            self.info = info
            waiting = self._changed()
        _call(waiting)

    def follow(
        self,
        cursor: Mapping[str, int] | None = None,
        *,
        streams: Sequence[str] = STREAMS,
        notify: Callable[[], None] | None = None,
    ) -> JournalFollower:
        """Follow it from these bytes on, each stream's first unless said; to be closed.

        Raises Refused for one follower too many, InvalidInput for a cursor below zero.
        """
        follower = JournalFollower(self, cursor or {}, streams, notify)
        with self.lock:
            if len(self._followers) >= MAX_FOLLOWERS:
                raise Refused(
                    f"{MAX_FOLLOWERS} follow this output already",
                    remediation="close some of them first",
                )
            self._followers.append(follower)
        return follower

    def begin_of(self, stream: str, most: int) -> bytes:
        """Return at most ``most`` bytes of ``stream`` from its first on, up to one that is lost."""
        found: list[bytes] = []
        size = 0
        with JournalFollower(self, {}, (stream,), None) as follower:
            while size < most and (events := follower.read()):
                for event in events:
                    if not isinstance(event, JournalChunk):
                        return b"".join(found)
                    found.append(event.data[: most - size])
                    size += len(found[-1])
        return b"".join(found)

    def leave(self, follower: JournalFollower) -> None:
        with self.lock, contextlib.suppress(ValueError):
            self._followers.remove(follower)

    def loss_at(self, stream: int, offset: int) -> str:
        """Return why this byte was lost, if the disk's refusal was it."""
        with self.lock:
            for entry in self._losses:
                if entry.stream == stream and 0 <= offset - entry.offset < entry.length:
                    return entry.reason
        return ""

    def flush(self, fast: bool = False) -> bool:
        """Write what is only in memory; whether the disk has taken it all.

        ``fast`` compresses less, in less time.
        """
        with self._io:
            with self.lock:
                self._dirty = False
                if not self.ring.total and not self.files.segments:
                    return True  # where there was no output there is no file
            while True:
                losses, entries, ending = self._next_write()
                if not losses and not entries and ending is None:
                    break
                if not self._write(losses, entries, ending, fast):
                    return False
            if self.info is not None:
                self.files.end_segment()
                with self.lock:
                    self._evict(0)
        return True

    def close(self) -> None:
        """Flush, and let go of the files; followers can go on reading. Idempotent."""
        self.flush()
        with self._io:
            self.files.end_segment()

    def remove(self) -> None:
        """Delete the files. What is appended yet is in memory alone."""
        with self._io:
            self.files.remove()

    def _next_write(self) -> tuple[list[JournalEntry], list[JournalEntry], bytes | None]:
        with self.lock:
            losses, self._unwritten = self._unwritten, []
            entries = self.ring.unstored(2 * _BLOCK)
            self._writing = self.ring.stored + len(entries)
            output = losses or entries or self.files.segments
            last = self._writing == self.ring.next and not self._end_written
            return losses, entries, self.info if output and last else None

    def _write(
        self,
        losses: list[JournalEntry],
        entries: list[JournalEntry],
        ending: bytes | None,
        fast: bool,
    ) -> bool:
        """Under ``_io``. Followers and the ring go on meanwhile."""
        parts = [*losses, *_joined(entries)]
        buffers = [buffer for entry in parts for buffer in record.encode(entry, fast)]
        total = parts[0].total if parts else self.ring.total
        if ending is not None:
            buffers += record.encode_end(ending, self.ring.total)
        try:
            self.files.write(buffers, tuple(self._written), total)
        except OSError as error:
            with self.lock:
                self._failing = DISK_FULL if error.errno in _FULL else DISK_ERROR
                self._retry_at = time.monotonic() + _RETRY
                self._unwritten = [*losses, *self._unwritten]
                self._writing = 0
                self._evict(self._memory)
            return False
        for entry in parts:
            self._written[entry.stream] = entry.offset + entry.length
        with self.lock:
            self._failing = ""
            self._writing = 0
            self.ring.mark_stored(len(entries))
            self._end_written = self._end_written or ending is not None
            self._evict(self._memory)
        return True

    def _drain(self) -> None:
        """A block is full: write it, unless the disk refused a moment ago."""
        if not self._failing or time.monotonic() >= self._retry_at:
            self.flush(fast=True)
        with self.lock:
            self._evict(self._memory)
            over = self.ring.size > 2 * self._memory
        if over:  # another thread is writing, and has not even failed yet
            with self._io, self.lock:
                self._evict(self._memory)

    def _evict(self, capacity: int) -> None:
        """Under ``lock``. What the disk has not taken goes only once it has refused."""
        for entry in self.ring.evict(capacity, bool(self._failing), self._writing):
            self._lose(entry)

    def _lose(self, entry: JournalEntry) -> None:
        lost = entry._replace(data=b"", reason=entry.reason or self._failing)
        for known in (self._losses, self._unwritten):
            for index, before in enumerate(known):
                if before.stream == lost.stream and before.offset + before.length == lost.offset:
                    known[index] = before._replace(length=before.length + lost.length)
                    break
            else:
                known.append(lost)
        del self._losses[:-_MAX_LOSSES]

    def _changed(self) -> list[Callable[[], None]]:
        """Under ``lock``: whom to call, once it is not held."""
        waiting: list[Callable[[], None]] = []
        for follower in self._followers:
            if follower.armed:
                follower.armed = False
                waiting.append(follower.notify)
        if not self._dirty:
            self._dirty = True
            waiting.append(partial(self._on_dirty, self))
        return waiting

    def _check_open(self) -> None:
        if self.info is not None:
            raise InvalidInput("the journal is finished: its process has ended")


def _call(waiting: list[Callable[[], None]]) -> None:
    for hook in waiting:
        with contextlib.suppress(Exception):  # a reader's trouble is not the process's
            hook()


def _joined(entries: list[JournalEntry]) -> list[JournalEntry]:
    """Neighbours of one stream as one entry, as long as a record may be."""
    joined: list[list[JournalEntry]] = []
    size = 0
    for entry in entries:
        last = joined[-1][-1] if joined else None
        fits = (
            last is not None and last.stream == entry.stream and not (last.reason or entry.reason)
        )
        if fits and size + entry.length <= _BLOCK:
            joined[-1].append(entry)
            size += entry.length
        else:
            joined.append([entry])
            size = entry.length
    return [
        group[0]
        if len(group) == 1
        else group[0]._replace(
            length=sum(e.length for e in group), data=b"".join(e.data for e in group)
        )
        for group in joined
    ]
