"""Records of the log, for people and for export. What is read is not verified."""

import os
import time
from collections import deque
from collections.abc import Iterator

from agentd.audit import files
from agentd.audit.files import LogFile
from agentd.audit.record import BEGIN, MAX_LINE, decode
from agentd.model.audit import Record

_CHUNK = 256 << 10
_POLL_SECONDS = 0.2


def lines(directory: str, first: int = 1, last: int | None = None) -> Iterator[bytes]:
    """Whole lines, from record ``first`` to ``last``, both included. Raises AuditError."""
    return (line for _, line in numbered(directory, first, last))


def numbered(
    directory: str, first: int = 1, last: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Those lines, each with the number that the record in its place has, whatever it says
    itself."""
    for file in _from(files.ls(directory), first):
        if last is not None and file.first > last:
            return
        at, seq = _place(file, first)
        for line in _Reader(file, at).whole():
            if first <= seq and (last is None or seq <= last):
                yield seq, line
            seq += 1


def tail(directory: str, count: int) -> list[bytes]:
    """Return the last ``count`` lines."""
    kept: deque[bytes] = deque()
    for file in reversed(files.ls(directory)):
        wanted = count - len(kept)
        if wanted <= 0:
            break
        kept.extendleft(reversed(_last(file, wanted)))
    return list(kept)


def _last(file: LogFile, count: int) -> list[bytes]:
    """Read its last whole lines, at most ``count``, from the end."""
    try:
        fd = files.open_reading(file.path)
    except FileNotFoundError:  # retired meanwhile
        return []
    except OSError as error:
        raise files.unreadable(file.path, error) from error
    try:
        size, window = os.fstat(fd).st_size, _CHUNK
        while True:
            begin = max(0, size - window)
            found = os.pread(fd, size - begin, begin).split(b"\n")[:-1]
            if begin == 0 or len(found) > count:  # the first of them may have begun before
                return [line + b"\n" for line in found[max(0, len(found) - count) :]]
            window *= 4
    finally:
        os.close(fd)


def follow(directory: str, first: int) -> Iterator[bytes]:
    """Lines from record ``first`` on, as they come; without end."""
    file, reader, seq = None, None, 0
    while True:
        found = _from(files.ls(directory), first)
        if file is None and found:
            file = found[0]
            reader, seq = _Reader(file), file.first
        for line in reader.whole() if reader else ():
            if seq >= first:
                yield line
            seq += 1
        later = [other for other in found if file and other.first > file.first]
        if later and later[0].first <= seq:
            file = later[0]
            reader, seq = _Reader(file), file.first
            continue
        time.sleep(_POLL_SECONDS)


def records(directory: str, first: int = 1, last: int | None = None) -> Iterator[Record]:
    """Raises AuditError for a line that is no record."""
    return (decode(line) for line in lines(directory, first, last))


def _from(found: list[LogFile], first: int) -> list[LogFile]:
    """Leave out the files that end before record ``first``."""
    begin = max((i for i, file in enumerate(found) if file.first <= first), default=0)
    return found[begin:]


def _place(file: LogFile, first: int) -> tuple[int, int]:
    """Return the offset of a line that is not behind record ``first``, and its number."""
    try:
        fd = files.open_reading(file.path)
    except OSError:
        return 0, file.first  # who reads it says so
    try:
        low, high, seq = 0, os.fstat(fd).st_size, file.first
        while high - low > _CHUNK:
            middle = (low + high) // 2
            data = os.pread(fd, 2 * MAX_LINE, middle)
            begin = data.find(b"\n") + 1
            found = BEGIN.match(data, begin) if begin else None
            if found is not None and middle + begin < high and int(found[1]) <= first:
                low, seq = middle + begin, int(found[1])
            else:
                high = middle
        return low, seq
    finally:
        os.close(fd)


class _Reader:
    """A reader of one file; ``whole`` goes on where it ended the last time."""

    def __init__(self, file: LogFile, at: int = 0) -> None:
        self._path = file.path
        self._offset = at

    def whole(self) -> Iterator[bytes]:
        """Lines that have their newline; stops at one that is longer than a record can be."""
        try:
            fd = files.open_reading(self._path)
        except FileNotFoundError:  # retired meanwhile
            return
        except OSError as error:
            raise files.unreadable(self._path, error) from error
        try:
            rest = b""
            at = self._offset
            while data := os.pread(fd, _CHUNK, at):
                at += len(data)
                *found, rest = (rest + data).split(b"\n")
                for line in found:
                    self._offset += len(line) + 1
                    yield line + b"\n"
                if len(rest) > MAX_LINE:
                    return
        finally:
            os.close(fd)
