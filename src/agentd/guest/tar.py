"""The tar format as far as trees of files need it: ustar headers with pax records (POSIX.1-2001).

Read by both sides, and each takes the other for hostile: every length is bounded before anything
is kept. GNU's long names and large numbers are understood, its sparse files are refused. Names and
targets are bytes, as the kernel has them.
"""

from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512
# An archive ends with two blocks of zeros.
END = bytes(2 * BLOCK)
MAX_ENTRIES = 1_000_000
MAX_BYTES = 64 << 30  # of all files together, holes included
MAX_DEPTH = 256
MAX_NAME = 255
MAX_PATH = 4095
MAX_RECORDS = 64 << 10
MAX_HEADERS = 64  # before an entry, which tell of it
MAX_AFTER = 16 << 20  # what follows the end: tar programs fill up a last record
# Records of our own: why it ends early, in a global header, which others take for a broken end; and
# what was left out, of the tree's own entry, which comes once more for it.
ERROR = b"AGENTD.error"
SKIPPED = b"AGENTD.skipped"

_MAX_TIME = 1 << 33
_OCTAL_SIZE = 8 << 30  # what eleven octal digits can tell is less
_TYPES = {b"0": "file", b"\0": "file", b"7": "file", b"1": "hard", b"2": "link", b"5": "dir"}
# Of an entry; others are not kept.
_KNOWN = (
    b"path", b"linkpath", b"size", b"mtime", b"GNU.sparse.major", b"GNU.sparse.size", SKIPPED,
)  # fmt: skip
_FLAGS = {"file": b"0", "link": b"2", "dir": b"5"}
_SPECIAL = {b"3": "a device", b"4": "a device", b"6": "a fifo", b"S": "a sparse file of GNU's"}


class TarError(Exception):
    """An archive, or a tree that should become one, is refused; the text says why."""


class TarEntry(NamedTuple):
    """``kind`` is "file", "dir", "link" or "hard"; ``size`` bytes of a file follow."""

    path: bytes
    kind: str
    mode: int = 0o644
    size: int = 0
    mtime: int = 0
    target: bytes = b""


def shown(path: bytes, limit: int = 200) -> str:
    """Returns a name for a message: on one line, whatever it holds; of a long one both ends."""
    text = ascii(path.decode(errors="surrogateescape"))[1:-1]
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"


def encode(entry: TarEntry, skipped: str = "") -> bytes:
    """Returns its header, with the pax records that it needs; ``skipped`` is what was left out."""
    name = entry.path + (b"/" if entry.kind == "dir" else b"")
    records = {SKIPPED: skipped.encode(errors="surrogateescape")} if skipped else {}
    if len(name) > 100:
        records[b"path"] = name
    if len(entry.target) > 100:
        records[b"linkpath"] = entry.target
    if entry.size >= _OCTAL_SIZE:
        records[b"size"] = b"%d" % entry.size
    head = _records(b"x", records) if records else b""
    return head + _header(name, _FLAGS[entry.kind], entry)


def encode_error(text: str) -> bytes:
    """Encodes what whoever unpacks is told; nothing comes after it."""
    return _records(b"g", {ERROR: text.encode(errors="surrogateescape")[:4096]})


def padding(size: int) -> int:
    """Counts the bytes from the end of ``size`` bytes to the end of their last block."""
    return -size % BLOCK


def _records(flag: bytes, records: dict[bytes, bytes]) -> bytes:
    body = b""
    for key, value in records.items():
        line = b" %s=%s\n" % (key, value)
        length = len(line)
        while length != len(line) + len(b"%d" % length):
            length = len(line) + len(b"%d" % length)
        body += b"%d%s" % (length, line)
    head = _header(b"pax", flag, TarEntry(b"pax", "file", size=len(body)))
    return head + body + bytes(padding(len(body)))


def _header(name: bytes, flag: bytes, entry: TarEntry) -> bytes:
    size = entry.size if entry.size < _OCTAL_SIZE else 0
    fields = [
        name[:100].ljust(100, b"\0"),
        b"%07o\0" % (entry.mode & 0o7777),
        b"0000000\0" * 2,  # whoever unpacks it owns it
        b"%011o\0" % size,
        b"%011o\0" % min(max(entry.mtime, 0), _MAX_TIME - 1),
        b" " * 8,
        flag,
        entry.target[:100].ljust(100, b"\0"),
        b"ustar\00000",
    ]
    block = b"".join(fields).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


class TarDecoder:
    """Bytes in, entries and the data of their files out. Raises TarError."""

    def __init__(self) -> None:
        self.ended = False
        self.skipped = ""
        self._buffer = bytearray()
        self._wanted = BLOCK
        self._flag = b""  # of the records that are being read,
        self._size = 0  # and their size without padding
        self._skip = 0
        self._data = 0
        self._next: dict[bytes, bytes] = {}  # records of the next entry
        self._headers = 0  # of it, so far
        self._after = 0

    def feed(self, data: bytes) -> Iterator[TarEntry | memoryview]:
        view = memoryview(data)
        while view and not self.ended:
            if self._data:
                piece, view = view[: self._data], view[self._data :]
                self._data -= len(piece)
                yield piece
            elif self._skip:
                taken = min(self._skip, len(view))
                self._skip -= taken
                view = view[taken:]
            else:
                missing = self._wanted - len(self._buffer)
                self._buffer += view[:missing]
                view = view[missing:]
                if len(self._buffer) == self._wanted:
                    whole, self._buffer = bytes(self._buffer), bytearray()
                    found = self._take(whole)
                    if found is not None:
                        yield found
        if self.ended:
            self._after += len(view)
            if self._after > MAX_AFTER:
                raise TarError("it goes on behind its end")

    def close(self) -> None:
        """Ends it with its stream. Raises TarError unless the archive has."""
        if not self.ended:
            raise TarError("the archive was cut off: it has no end")

    def _take(self, whole: bytes) -> TarEntry | None:
        if self._flag:
            flag, self._flag, self._wanted = self._flag, b"", BLOCK
            self._keep(flag, whole)
            return None
        if not any(whole):
            self.ended = True
            return None
        return self._head(whole)

    def _head(self, block: bytes) -> TarEntry | None:
        told = block[148:156].strip(b" \0")
        if told.lstrip(b"0") != b"%o" % (sum(block[:148]) + 8 * 32 + sum(block[156:])):
            raise TarError("this is no tar archive, or it is damaged")
        flag, size = block[156:157], _number(block[124:136])
        if flag in (b"x", b"g", b"L", b"K"):
            if size > MAX_RECORDS:
                raise TarError(f"a header of {size} bytes is over {MAX_RECORDS}")
            self._headers += 1
            if self._headers > MAX_HEADERS:
                raise TarError(f"an entry in it has over {MAX_HEADERS} headers")
            if size:
                self._flag, self._size, self._wanted = flag, size, size + padding(size)
            return None
        records, self._next, self._headers = self._next, {}, 0
        return self._entry(block, flag, size, records)

    def _entry(self, block: bytes, flag: bytes, size: int, records: dict[bytes, bytes]) -> TarEntry:
        name = _text(block[:100])
        if block[257:263] == b"ustar\0" and block[345]:
            name = _text(block[345:500]) + b"/" + name
        name = records.get(b"path", name)
        if b"GNU.sparse.major" in records or b"GNU.sparse.size" in records:
            flag = b"S"
        if flag in _SPECIAL or flag not in _TYPES:
            what = _SPECIAL.get(flag, f"of the unknown type {flag!r}")
            raise TarError(f"{shown(name)} is {what}")
        self.skipped = shown(records.get(SKIPPED, b"")) or self.skipped
        kind = _TYPES[flag]
        if kind == "file" and name.endswith(b"/"):
            kind = "dir"  # of tars from before 1988
        size = _decimal(records.get(b"size"), size) if kind == "file" else 0
        self._data, self._skip = size, padding(size)
        mtime = min(_decimal(records.get(b"mtime"), _number(block[136:148])), _MAX_TIME - 1)
        target = records.get(b"linkpath", _text(block[157:257]))
        return TarEntry(name, kind, _number(block[100:108]) & 0o7777, size, mtime, target)

    def _keep(self, flag: bytes, whole: bytes) -> None:
        body = whole[: self._size]
        if flag in (b"L", b"K"):
            self._next[b"path" if flag == b"L" else b"linkpath"] = _text(body)
        elif flag == b"x":
            self._next.update({k: v for k, v in _parsed(body).items() if k in _KNOWN})
        else:
            told = _parsed(body).get(ERROR)
            if told is not None:
                raise TarError(shown(told, 1000))


def _parsed(body: bytes) -> dict[bytes, bytes]:
    """``LENGTH KEY=VALUE\\n`` one after the other."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(body):
        digits, space, _ = body[at : at + 20].partition(b" ")
        length = int(digits) if space and digits.isdigit() and len(digits) < 7 else 0
        record = body[at : at + length]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if len(record) != length or not equals or not value.endswith(b"\n"):
            raise TarError("a pax header in it is malformed")
        found[key] = value[:-1]
        at += length
    return found


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """Octal digits, or base 256 behind a byte of 0x80."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if digits.translate(None, b"01234567"):
        raise TarError("a number in it is malformed")
    return int(digits, 8)


def _decimal(value: bytes | None, otherwise: int) -> int:
    """A whole number of a pax record; what is behind the point is left out."""
    if value is None:
        return otherwise
    digits = value.partition(b".")[0]
    if not digits.removeprefix(b"-").isdigit() or len(digits) > 20:
        raise TarError("a number in it is malformed")
    return max(0, int(digits))
