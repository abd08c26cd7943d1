"""Receipts on disk, by id: the newest segment is appended to, the oldest is dropped.

They are not synced: what a loss of power takes is issued again from the log (reissue.py).
An index beside each finished segment keeps nothing of it in memory.
"""

import contextlib
import os
import re
import threading
from bisect import bisect_left
from collections.abc import Iterator
from hashlib import sha256

from agentd.audit.errors import AuditError
from agentd.audit.files import open_reading, write_all

MAX_BYTES = 256 << 20
MAX_RECEIPT = 1 << 20
_SEGMENTS = 8
_SEGMENT = re.compile(r"receipts-([0-9]{12})\.jsonl")
_INDEX = ".index"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_TAG = 16  # bytes of the id's SHA-256
_ENTRY = _TAG + 8  # and the offset


class ReceiptStore:
    """The only one that writes to ``directory`` (see shared.py for several); ``get`` needs none
    that writes. Thread-safe."""

    def __init__(self, directory: str, max_bytes: int = MAX_BYTES) -> None:
        """Raises AuditError."""
        self._directory = directory
        self._segment_bytes = max(1, max_bytes // _SEGMENTS)
        self._guard = threading.Lock()
        self._offsets: dict[bytes, int] = {}  # of the newest segment
        self._fd, self._number, self._size = -1, 0, 0
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
            self._load()
        except OSError as error:
            raise failed(directory, error) from error

    def put(self, receipt_id: str, envelope: bytes) -> None:
        """Another with the same id takes its place. Raises AuditError."""
        if not _ID.fullmatch(receipt_id) or b"\n" in envelope or len(envelope) > MAX_RECEIPT:
            raise AuditError(f"{receipt_id!r} cannot be kept as a receipt")
        line = b"%b %b\n" % (receipt_id.encode(), envelope)
        with self._guard:
            try:
                if self._fd >= 0 and not os.fstat(self._fd).st_nlink:  # it was removed
                    os.close(self._fd)
                    self._fd, self._size = -1, 0
                if self._fd < 0 or (self._size and self._size + len(line) > self._segment_bytes):
                    self._begin()
                self._write(line)
            except OSError as error:
                raise failed(self._directory, error) from error
            self._offsets[_tag(receipt_id)] = self._size
            self._size += len(line)

    def get(self, receipt_id: str) -> bytes | None:
        """Return the envelope; None where it is not, or no longer, kept. Raises AuditError."""
        with self._guard:
            offset = self._offsets.get(_tag(receipt_id))
            number = self._number
        try:
            if offset is not None:
                return _read(self._path(number), offset, receipt_id)
            return find(self._directory, receipt_id, below=number)
        except FileNotFoundError:  # its file was removed
            return None
        except OSError as error:
            raise failed(self._directory, error) from error

    def close(self) -> None:
        with self._guard:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def _load(self) -> None:
        numbers = _numbers(self._directory)
        if not numbers:
            return
        self._number = numbers[-1]
        path = self._path(self._number)
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._read_on()

    def _read_on(self) -> None:
        """Read what the newest segment has that is not known yet."""
        for tag, offset, end in _scan(self._path(self._number), self._size):
            self._offsets[tag] = offset
            self._size = end
        os.ftruncate(self._fd, self._size)  # what a crash has torn

    def _begin(self) -> None:
        """Index the newest segment, drop the oldest, and make another."""
        if self._fd >= 0:
            _write_index(self._path(self._number) + _INDEX, self._offsets)
        os.makedirs(self._directory, 0o700, exist_ok=True)  # it may have been removed
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._path(self._number + 1), flags, 0o600)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._number, self._size = fd, self._number + 1, 0
        self._offsets = {}
        for number in _numbers(self._directory)[:-_SEGMENTS]:
            for path in (self._path(number), self._path(number) + _INDEX):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def _write(self, line: bytes) -> None:
        try:
            write_all(self._fd, line)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise

    def _path(self, number: int) -> str:
        return _path(self._directory, number)


def find(directory: str, receipt_id: str, below: int | None = None) -> bytes | None:
    """Find one in the files alone, the newest first: for who does not write them. Raises
    OSError."""
    for number in reversed(_numbers(directory)):
        if below is not None and number >= below:
            continue
        path = _path(directory, number)
        with contextlib.suppress(FileNotFoundError):  # dropped meanwhile
            offset = _offset(path, receipt_id)
            if offset is not None:
                return _read(path, offset, receipt_id)
    return None


def _offset(path: str, receipt_id: str) -> int | None:
    tag = _tag(receipt_id)
    try:
        fd = open_reading(path + _INDEX)
    except FileNotFoundError:
        return next((at for each, at, _ in reversed(list(_scan(path))) if each == tag), None)
    try:
        entries = _Entries(fd)
        at = bisect_left(entries, tag)
        found = entries.entry(at) if at < len(entries) else b""
        return int.from_bytes(found[_TAG:]) if found[:_TAG] == tag else None
    finally:
        os.close(fd)


class _Entries:
    """An index as a sorted sequence of tags, read where it is looked at."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._count = os.fstat(fd).st_size // _ENTRY

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: int) -> bytes:
        return self.entry(at)[:_TAG]

    def entry(self, at: int) -> bytes:
        return os.pread(self._fd, _ENTRY, at * _ENTRY)


def _write_index(path: str, offsets: dict[bytes, int]) -> None:
    temporary = f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600)
    try:
        write_all(fd, b"".join(tag + at.to_bytes(8) for tag, at in sorted(offsets.items())))
    finally:
        os.close(fd)
    os.rename(temporary, path)


def _scan(path: str, at: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """(tag, offset, end) of each whole line, from the byte ``at`` on."""
    with open(open_reading(path), "rb") as file:
        file.seek(at)
        while line := file.readline(MAX_RECEIPT + 256):
            if not line.endswith(b"\n"):
                return
            receipt_id, _, _ = line.partition(b" ")
            yield _tag(receipt_id.decode(errors="replace")), at, at + len(line)
            at += len(line)


def _read(path: str, offset: int, receipt_id: str) -> bytes | None:
    with open(open_reading(path), "rb") as file:
        file.seek(offset)
        line = file.readline(MAX_RECEIPT + 256)
    found, _, envelope = line.rstrip(b"\n").partition(b" ")
    return envelope if found == receipt_id.encode() and line.endswith(b"\n") else None


def _numbers(directory: str) -> list[int]:
    found = (_SEGMENT.fullmatch(name) for name in os.listdir(directory))
    return sorted(int(match[1]) for match in found if match)


def every_line(directory: str) -> Iterator[bytes]:
    """``ID ENVELOPE`` of each receipt, the oldest first. Raises OSError."""
    for number in _numbers(directory):
        with contextlib.suppress(FileNotFoundError):  # dropped meanwhile
            yield from _lines(_path(directory, number))


def newest_lines(directory: str, number: int, most: int) -> Iterator[bytes]:
    """Of the segment ``number``, as far as its last ``most`` bytes hold them. Raises OSError."""
    where = _path(directory, number)
    begin = max(0, os.stat(where).st_size - most)
    found = _lines(where, begin)
    if begin:
        next(found, None)  # it may have begun before
    yield from found


def _lines(where: str, at: int = 0) -> Iterator[bytes]:
    with open(open_reading(where), "rb") as file:
        file.seek(at)
        while (line := file.readline(MAX_RECEIPT + 256)).endswith(b"\n"):
            yield line


def newest(directory: str) -> int:
    """Return the number of the segment that is written to; 0 where there is none."""
    return max(_numbers(directory), default=0)


def _path(directory: str, number: int) -> str:
    return os.path.join(directory, f"receipts-{number:012}.jsonl")


def _tag(receipt_id: str) -> bytes:
    return sha256(receipt_id.encode(errors="replace")).digest()[:_TAG]


def failed(directory: str, error: OSError) -> AuditError:
    return AuditError(
        f"the receipts in {directory} cannot be read or written",
        cause=error.strerror or str(error),
        remediation="free space on its disk and check its permissions",
    )
