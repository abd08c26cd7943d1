"""A journal's segments on disk: written at the end of the newest, dropped whole from the oldest, or
from the oldest behind its begin."""

import contextlib
import os
import re
from collections.abc import Sequence

from agentd.sandbox.journal import record
from agentd.sandbox.journal.record import Start

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
