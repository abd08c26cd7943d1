"""Addresses are reached within one region, or not at all."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.vsock.errors import Violation
from agentd.vsock.memory import Memory, Region

PAGE = 4096
REGIONS = [
    Region(0, 4 * PAGE, 0x10_0000, 0),
    Region(4 * PAGE, PAGE, 0x90_0000, 4 * PAGE),  # next to the first in the guest, not in the VMM
    Region(1 << 32, 2 * PAGE, 0x20_0000, 5 * PAGE),
]
CONTENT = os.urandom(7 * PAGE)


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    fd = os.memfd_create("ram")
    os.write(fd, CONTENT)
    made = Memory.map(REGIONS, [fd] * 3)
    os.close(fd)
    yield made
    made.close()


EDGES = [edge for region in REGIONS for edge in (region.guest, region.guest + region.size)]
EDGES += [edge for region in REGIONS for edge in (region.user, region.user + region.size)]
ADDRESSES = st.one_of(
    st.builds(lambda edge, by: max(0, edge + by), st.sampled_from(EDGES), st.integers(-99, 99)),
    st.integers(0, 2**64 - 1),
)
LENGTHS = st.one_of(st.integers(0, 200), st.integers(0, 2**32 - 1), st.just(4 * PAGE))


@given(ADDRESSES, LENGTHS, st.booleans())
def test_a_view_is_of_one_region_or_refused(
    memory: Memory, address: int, length: int, guest: bool
) -> None:
    expected = None
    for region in REGIONS:
        start = region.guest if guest else region.user
        if start <= address and address + length <= start + region.size:
            offset = region.offset + address - start
            expected = CONTENT[offset : offset + length]
            break
    find = memory.guest if guest else memory.user
    if expected is None:
        with pytest.raises(Violation, match="not all memory"):
            find(address, length)
    else:
        assert bytes(find(address, length)) == expected


def test_what_is_written_is_in_the_file() -> None:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, PAGE)
    memory = Memory.map([Region(0, PAGE, 0, 0)], [fd])
    memory.guest(10, 5)[:] = b"hello"
    memory.close()
    assert os.pread(fd, 5, 10) == b"hello"
    os.close(fd)


def test_a_view_outlives_the_table_it_came_from() -> None:
    fd = os.memfd_create("ram")
    os.write(fd, CONTENT)
    memory = Memory.map(REGIONS, [fd] * 3)
    os.close(fd)
    view = memory.guest(0, 16)
    memory.close()
    assert bytes(view) == CONTENT[:16]
    with pytest.raises(Violation):
        memory.guest(0, 16)
