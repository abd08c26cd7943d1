"""A sandbox's files in its snapshot: a few plain files, whatever lies in the sandbox.

    entries   records, each four bytes of its length and then msgpack: ``KeptHead``, and a
              ``KeptFile`` for each file, a folder right before what is in it
    content   the data of regular files, one after the other, without the holes
    layer     of a fork: the name of the layer that it shares with the sandbox that it is a fork of;
              the rest has the changes of that, if there are any
    image     the digest of the OCI image that they are changes of, where it started of one

So nothing of a sandbox's is ever a file of its own on the host: no set-id bit, no name, no link.
Owners count from the first of the sandbox's ids, as another sandbox has another block of them.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, Literal

import msgspec

ENTRIES, CONTENT = "entries", "content"
#: The digest of the image that the files are changes of, where there is one; and the name of the
#: layer that a fork shares, for as long as what it is a fork of lives.
Word = Literal["image", "layer"]
FORMAT = 1
#: Folders in each other; a sandbox that has more is not kept.
MAX_DEPTH = 256
MAX_ENTRIES = 1 << 21
#: Bytes of one file's extended attributes.
MAX_ATTRIBUTES = 1 << 20
_MAX_RECORD = 64 << 20
_NAME_BYTES = 255


class DamagedFiles(ValueError):
    """The files are not what ``saving`` writes."""


class KeptHead(msgspec.Struct, frozen=True, array_like=True):
    format: int


class KeptFile(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``depth`` is 1 for what lies at the top; times are nanoseconds; ``data`` has the place and
    length of each stretch that is no hole; ``target`` is a link's, of a hard link the path of an
    entry before it; ``attributes`` are extended ones, ``user.*`` alone."""

    depth: int
    name: bytes
    kind: Literal["folder", "file", "hard link", "link", "pipe", "whiteout"]
    mode: int
    uid: int
    gid: int
    accessed: int
    modified: int
    size: int = 0
    data: tuple[tuple[int, int], ...] = ()
    target: bytes = b""
    attributes: dict[str, bytes] = {}


class TooLong(ValueError):
    """A record is longer than ``read`` takes."""


def write(file: BinaryIO, record: KeptHead | KeptFile) -> None:
    """Raises TooLong, before anything of it is written."""
    data = msgspec.msgpack.encode(record)
    if len(data) > _MAX_RECORD:
        raise TooLong(f"{len(data)} bytes")
    file.write(len(data).to_bytes(4, "big"))
    file.write(data)


def read(file: BinaryIO) -> Iterator[KeptFile]:
    """Yields what was written. Raises DamagedFiles, also for a name that leads anywhere else."""
    data = _record(file)
    if data is None:
        raise DamagedFiles("it is empty")
    try:
        head = msgspec.msgpack.decode(data, type=KeptHead)
        if head.format != FORMAT:
            raise DamagedFiles(
                f"its files have format {head.format}, and this agentd reads {FORMAT}"
            )
        decoder = msgspec.msgpack.Decoder(KeptFile)
        count = 0
        while (data := _record(file)) is not None:
            count += 1
            if count > MAX_ENTRIES:
                raise DamagedFiles(f"it has over {MAX_ENTRIES} files")
            yield _checked(decoder.decode(data))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DamagedFiles(str(error)) from None


def _record(file: BinaryIO) -> bytes | None:
    prefix = file.read(4)
    if not prefix:
        return None
    length = int.from_bytes(prefix, "big")
    if len(prefix) < 4 or length > _MAX_RECORD:
        raise DamagedFiles("a record has no end")
    data = file.read(length)
    if len(data) < length:
        raise DamagedFiles("a record has no end")
    return data


def _checked(entry: KeptFile) -> KeptFile:
    shown = os.fsdecode(entry.name[:_NAME_BYTES])
    if not is_name(entry.name):
        raise DamagedFiles(f"{shown!a} is no name")
    if not 1 <= entry.depth <= MAX_DEPTH or (entry.depth == 1 and entry.kind != "folder"):
        raise DamagedFiles(f"{shown!a} cannot lie {entry.depth} deep")
    if entry.mode & ~0o7777 or entry.uid < 0 or entry.gid < 0 or entry.size < 0:
        raise DamagedFiles(f"{shown!a} has a mode, an owner or a size that there is not")
    if any(not name.startswith("user.") for name in entry.attributes):
        raise DamagedFiles(f"{shown!a} has attributes that are not its owner's")
    place = 0
    for start, length in entry.data:
        if start < place or length <= 0 or start + length > entry.size:
            raise DamagedFiles(f"{shown!a} has data beyond its end")
        place = start + length
    return entry


def is_name(name: bytes) -> bool:
    """Return whether it names an entry of a folder, and leads nowhere else."""
    return 0 < len(name) <= _NAME_BYTES and name not in (b".", b"..") and not set(name) & {0, 47}


def has_files(folder: str) -> bool:
    """Return whether there are any beside the layers of a fork."""
    return os.path.lexists(f"{folder}/{ENTRIES}")


def write_word(folder: str, name: Word, word: str) -> None:
    """Writes of which image the files are changes, or which layer is shared. Raises OSError."""
    with open(f"{folder}/{name}", "x", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(word)


def read_word(folder: str, name: Word) -> str:
    """Returns what was written; empty where nothing was. Raises OSError."""
    try:
        fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    with open(fd, encoding="ascii", errors="replace") as file:
        return file.read(100)
