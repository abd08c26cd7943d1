"""The addresses that names are answered with: one a name and sandbox, so that a connection names
its host.

Made of the name, not counted: a relay that takes over from a dead one gives the same, and programs
that remember an address go on to reach what they meant.
"""

import socket
from zlib import crc32

V4_START = (
    198 << 24 | 18 << 16
)  # 198.18.0.0/15, for benchmarks (RFC 2544): nobody's on the Internet
V4_SIZE = 1 << 17
V6_PREFIX = bytes.fromhex("fd6167656e74") + b"\0" * 6  # fd61:6765:6e74::/48
#: Names that one sandbox has asked for, and of those the ones that a wildcard allows: each tells
#: whoever answers for the domain as much as fits into a name.
MAX_NAMES = 4096
MAX_WILD = 512


class Synthetic:
    """The names of one sandbox. Bounded: a name more than ``MAX_NAMES`` has no address."""

    __slots__ = ("_at", "_names", "_wild")

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._at: dict[str, int] = {}
        self._wild = 0

    def give(self, name: str, *, wild: bool) -> int | None:
        """Return the number of a name's address; None where too many have one. ``wild``: allowed by
        a wildcard alone."""
        number = self._at.get(name)
        if number is not None:
            return number
        if len(self._at) >= MAX_NAMES or (wild and self._wild >= MAX_WILD):
            return None
        # Neither the first nor the last address, which look like a network's and a broadcast.
        number = crc32(name.encode()) % (V4_SIZE - 2) + 1
        while number in self._names:
            number = number % (V4_SIZE - 2) + 1
        self._names[number], self._at[name] = name, number
        self._wild += wild
        return number

    def has(self, name: str) -> bool:
        return name in self._at

    def name(self, number: int) -> str | None:
        return self._names.get(number)


def packed(number: int, family: int) -> bytes:
    """Return the address as DNS has it."""
    v4 = (V4_START + number).to_bytes(4, "big")
    return v4 if family == socket.AF_INET else V6_PREFIX + v4


def number_of(address: bytes) -> int | None:
    """Return which number a synthetic address is of; None for another's address."""
    if len(address) == 16:
        if not address.startswith(V6_PREFIX):
            return None
        address = address[12:]
    number = int.from_bytes(address, "big") - V4_START
    return number if 0 <= number < V4_SIZE else None
