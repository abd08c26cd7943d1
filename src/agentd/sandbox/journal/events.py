"""What a follower is told, in the order in which it happened."""

from typing import NamedTuple

STREAMS = ("stdout", "stderr", "pty")

# Why bytes are missing.
LIMIT = "limit"  # the journal's bound: the oldest went first
DISK_FULL = "disk_full"
DISK_ERROR = "disk_error"
CRASH = "crash"  # the daemon or the machine died before they were in the file
CORRUPT = "corrupt"  # the file is damaged


class JournalChunk(NamedTuple):
    stream: str
    offset: int
    data: bytes


class Gap(NamedTuple):
    """``length`` bytes from ``offset`` on are lost."""

    stream: str
    offset: int
    length: int
    reason: str


class End(NamedTuple):
    """Nothing follows. ``info`` is what ``Journal.finish`` was given."""

    info: bytes


Event = JournalChunk | Gap | End


class JournalEntry(NamedTuple):
    """Bytes of one stream, or their loss if there is a ``reason``.

    ``total`` counts the bytes of all streams before it: it orders entries wherever they are.
    """

    total: int
    stream: int
    offset: int
    length: int
    data: bytes
    reason: str = ""
