"""A split virtqueue of the device's side (virtio 1.2, section 2.7).

Everything in it is the guest's to write at any time: each value is read once, then checked.
"""

import struct
from typing import NamedTuple

from agentd.vsock.errors import Violation
from agentd.vsock.memory import Memory

MAX_SIZE = 1024
MAX_CHAIN = 64  # descriptors; Linux uses one to receive and at most 19 to send
MAX_BYTES = 256 << 10  # a chain's; Linux gives 4 KiB to receive and at most 64 KiB to send

_NEXT = 1
_WRITE = 2
_DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next


class DescriptorChain(NamedTuple):
    """A buffer of the guest's, of ``size`` bytes."""

    head: int
    parts: list[memoryview]
    size: int


class Layout(NamedTuple):
    """Addresses are the VMM's."""

    size: int
    descriptors: int
    available: int
    used: int


class DescriptorRing:
    """``writable``: whether its chains are for the device to write to (or to read).

    Raises Violation for a layout that is none, and from take() for all that the guest gets wrong.
    """

    def __init__(self, memory: Memory, layout: Layout, base: int, *, writable: bool) -> None:
        size = layout.size
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise Violation(f"virtqueue of {size} entries")
        if layout.descriptors % 16 or layout.available % 2 or layout.used % 4:
            raise Violation("a virtqueue is not aligned")
        self.size = size
        self._memory = memory
        self._descriptors = memory.user(layout.descriptors, 16 * size)
        # As 16-bit words: struct's "<H" moves a byte at a time, and the guest would see half.
        self._available = memory.user(layout.available, 4 + 2 * size).cast("H")
        used = memory.user(layout.used, 4 + 8 * size)
        self._used = used.cast("I")
        self._used_index = used[:4].cast("H")
        self._direction = _WRITE if writable else 0
        self._done = self._published = self._used_index[1]
        self.next = base & 0xFFFF

    @property
    def waiting(self) -> int:
        """Chains that the guest has made available and nobody took. Raises Violation."""
        count = (self._available[1] - self.next) & 0xFFFF
        if count > self.size:
            raise Violation(f"{count} chains are available in a virtqueue of {self.size}")
        return count

    def take(self) -> DescriptorChain:
        """Return the next of the ``waiting`` chains."""
        head = self._available[2 + (self.next & (self.size - 1))]
        index, size = head, 0
        parts: list[memoryview] = []
        for _ in range(MAX_CHAIN):
            if index >= self.size:
                raise Violation(f"descriptor {index} of a virtqueue of {self.size}")
            address, length, flags, following = _DESCRIPTOR.unpack_from(
                self._descriptors, index * 16
            )
            if flags & ~_NEXT != self._direction:
                raise Violation(f"descriptor with flags {flags:#x}")
            size += length
            if size > MAX_BYTES:
                raise Violation(f"a chain of more than {MAX_BYTES} bytes")
            if length:
                parts.append(self._memory.guest(address, length))
            if not flags & _NEXT:
                self.next = (self.next + 1) & 0xFFFF
                return DescriptorChain(head, parts, size)
            index = following
        raise Violation(f"a chain of more than {MAX_CHAIN} descriptors, or a loop")

    def give_back(self, count: int) -> None:
        """Has the last ``count`` taken chains wait again; the guest has seen nothing of it."""
        self.next = (self.next - count) & 0xFFFF

    def put(self, head: int, written: int) -> None:
        """Puts back a chain that is done; the guest sees it after publish()."""
        slot = 1 + 2 * (self._done & (self.size - 1))
        self._used[slot] = head
        self._used[slot + 1] = written
        self._done = (self._done + 1) & 0xFFFF

    def publish(self) -> bool:
        """Show the guest what was put; True when that was anything."""
        if self._published == self._done:
            return False
        self._used_index[1] = self._published = self._done
        return True
