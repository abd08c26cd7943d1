"""The guest's memory: mapped from the VMM's files, reached only within its regions."""

import mmap
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from agentd.vsock.errors import Violation

_LIMIT = 1 << 52  # x86-64's and arm64's widest physical address; no sum below overflows a u64


class Region(NamedTuple):
    """A region of ``size`` bytes: where it is in the guest, in the VMM, and in the file."""

    guest: int
    size: int
    user: int
    offset: int


class Memory:
    """Read and write views of the guest's memory; the guest writes to them as well, at any time.

    A file that its owner shortens afterwards ends this process (SIGBUS), which is as good an end
    as any; QEMU seals its memfd against it.
    """

    def __init__(self) -> None:
        self._guest: list[tuple[int, int, memoryview]] = []
        self._user: list[tuple[int, int, memoryview]] = []
        self._maps: list[mmap.mmap] = []

    @classmethod
    def map(cls, regions: Sequence[Region], fds: Sequence[int]) -> "Memory":
        """Return a descriptor for each region; they stay the caller's. Raises Violation."""
        memory = cls()
        try:
            for region, fd in zip(regions, fds, strict=True):
                memory._add(region, fd)
        except BaseException:
            memory.close()
            raise
        return memory

    def guest(self, address: int, length: int) -> memoryview:
        """Return the bytes at a guest physical address; they lie in one region. Raises
        Violation."""
        for start, end, view in self._guest:
            if start <= address and address + length <= end:
                address -= start
                return view[address : address + length]
        raise Violation(f"{length} bytes at guest address {address:#x} are not all memory")

    def user(self, address: int, length: int) -> memoryview:
        """Return the bytes at an address of the VMM's. Raises Violation."""
        for start, end, view in self._user:
            if start <= address and address + length <= end:
                return view[address - start : address - start + length]
        raise Violation(f"{length} bytes at VMM address {address:#x} are not all memory")

    def close(self) -> None:
        """Views that were handed out keep their mapping until they are gone."""
        for _, _, view in self._guest:
            view.release()
        self._guest, self._user = [], []
        while self._maps:
            try:
                self._maps.pop().close()
            except BufferError:  # a ring still has its view; the mapping goes with that
                continue

    def _add(self, region: Region, fd: int) -> None:
        if not region.size or max(region.guest, region.offset) + region.size > _LIMIT:
            raise Violation(f"memory region of {region.size} bytes at {region.guest:#x}")
        if region.user + region.size > 1 << 64:
            raise Violation(f"memory region at VMM address {region.user:#x} wraps around")
        for taken in (self._guest, self._user):
            start = region.guest if taken is self._guest else region.user
            if any(start < end and first < start + region.size for first, end, _ in taken):
                raise Violation(f"memory region at {start:#x} overlaps another")
        view = self._map(region, fd)
        self._guest.append((region.guest, region.guest + region.size, view))
        self._user.append((region.user, region.user + region.size, view))

    def _map(self, region: Region, fd: int) -> memoryview:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Violation("a memory region's descriptor is no file")
        end = region.offset + region.size
        if end > status.st_size:
            raise Violation(f"memory region ends at {end} of a file of {status.st_size} bytes")
        try:
            # From 0, so that any offset is aligned, with huge pages too; it is address space only.
            mapped = mmap.mmap(fd, end, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except (OSError, ValueError) as error:
            raise Violation(f"memory region cannot be mapped: {error}") from error
        self._maps.append(mapped)
        return memoryview(mapped)[region.offset : end]
