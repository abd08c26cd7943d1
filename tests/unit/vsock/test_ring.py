"""The device's half of a virtqueue, against a driver that behaves and one that does not."""

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.vsock.errors import Violation
from agentd.vsock.memory import Memory, Region
from agentd.vsock.ring import MAX_BYTES, MAX_CHAIN, DescriptorRing, Layout

SIZE = 128
ROOM = 1 << 20
AVAILABLE, USED, DATA = 0x1000, 0x2000, 0x4000
LAYOUT = Layout(SIZE, 0, AVAILABLE, USED)
NEXT, WRITE, INDIRECT = 1, 2, 4


class Driver:
    def __init__(self, writable: bool = False, base: int = 0) -> None:
        fd = os.memfd_create("ram")
        os.ftruncate(fd, ROOM)
        self.memory = Memory.map([Region(0, ROOM, 0, 0)], [fd])
        os.close(fd)
        self.put("<H", AVAILABLE + 2, base)
        self.put("<H", USED + 2, base)
        self.ring = DescriptorRing(self.memory, LAYOUT, base, writable=writable)

    def close(self) -> None:
        del self.ring  # whose views hold the mapping
        self.memory.close()

    def put(self, form: str, address: int, *values: int) -> None:
        struct.pack_into(form, self.memory.guest(address, struct.calcsize(form)), 0, *values)

    def index(self, address: int) -> int:
        value: int = struct.unpack("<H", self.memory.guest(address + 2, 2))[0]
        return value

    def describe(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        self.put("<QIHH", 16 * index, address, length, flags, following)

    def offer(self, head: int) -> None:
        index = self.index(AVAILABLE)
        self.put("<H", AVAILABLE + 4 + 2 * (index % SIZE), head)
        self.put("<H", AVAILABLE + 2, (index + 1) & 0xFFFF)


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.close()


@given(st.data(), st.integers(0, 0xFFFF), st.booleans())
def test_chains_come_in_order_and_go_back_as_they_are_put(
    data: st.DataObject, base: int, writable: bool
) -> None:
    driver = Driver(writable, base)
    order = data.draw(st.permutations(range(SIZE)))
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=20))
    flags = WRITE if writable else 0
    chains = []
    for size in sizes:
        indices = [order.pop() for _ in range(size)]
        for place, index in enumerate(indices):
            more = place < size - 1
            following = indices[place + 1] if more else data.draw(st.integers(0, 0xFFFF))
            length = data.draw(st.integers(0, 100))
            driver.describe(index, DATA + index * 128, length, flags | more, following)
            driver.memory.guest(DATA + index * 128, 128)[:] = bytes([index]) * 128
        chains.append(indices)
        driver.offer(indices[0])
    assert driver.ring.waiting == len(chains)
    for indices in chains:
        chain = driver.ring.take()
        assert chain.head == indices[0]
        assert chain.size == sum(map(len, chain.parts))
        seen = [part[0] for part in chain.parts]
        assert seen == [index for index in indices if index in seen]
        driver.ring.put(chain.head, chain.size)
    assert driver.index(USED) == base  # nothing is seen before it is published
    assert driver.ring.publish()
    assert driver.index(USED) == (base + len(chains)) & 0xFFFF
    assert not driver.ring.publish()
    for place, indices in enumerate(chains):
        slot = USED + 4 + 8 * ((base + place) % SIZE)
        assert struct.unpack("<I", driver.memory.guest(slot, 4))[0] == indices[0]
    driver.close()


def test_what_is_given_back_is_taken_again(driver: Driver) -> None:
    for head in range(3):
        driver.describe(head, DATA, 10, 0, 0)
        driver.offer(head)
    assert [driver.ring.take().head for _ in range(3)] == [0, 1, 2]
    driver.ring.give_back(2)
    assert driver.ring.waiting == 2
    assert driver.ring.take().head == 1


def test_more_available_than_there_are_entries(driver: Driver) -> None:
    driver.put("<H", AVAILABLE + 2, SIZE + 1)
    with pytest.raises(Violation, match="129 chains are available"):
        _ = driver.ring.waiting


def test_an_available_index_that_goes_back(driver: Driver) -> None:
    driver.put("<H", AVAILABLE + 2, 0xFFFF)
    with pytest.raises(Violation, match="65535 chains"):
        _ = driver.ring.waiting


BAD = {
    "address past the end": (ROOM, 1, 0),
    "length past the end": (ROOM - 10, 11, 0),
    "address that wraps": (2**64 - 1, 2, 0),
    "huge length": (DATA, 0xFFFFFFFF, 0),
    "long for a chain": (DATA, MAX_BYTES + 1, 0),
    "writable in a queue to read": (DATA, 10, WRITE),
    "indirect": (DATA, 16, INDIRECT),
    "unknown flags": (DATA, 10, 1 << 15),
    "next of next": (DATA, 10, NEXT | WRITE),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_descriptor(driver: Driver, name: str) -> None:
    driver.describe(3, *BAD[name], 0)
    driver.offer(3)
    with pytest.raises(Violation):
        driver.ring.take()


def test_a_readable_descriptor_in_a_queue_to_write() -> None:
    driver = Driver(writable=True)
    driver.describe(0, DATA, 10, WRITE | NEXT, 1)
    driver.describe(1, DATA, 10, 0, 0)
    driver.offer(0)
    with pytest.raises(Violation, match="flags 0x0"):
        driver.ring.take()
    driver.close()


@pytest.mark.parametrize("head", [SIZE, 0xFFFF])
def test_a_head_that_is_none(driver: Driver, head: int) -> None:
    driver.offer(head)
    with pytest.raises(Violation, match=f"descriptor {head} of a virtqueue of 128"):
        driver.ring.take()


def test_a_next_that_is_none(driver: Driver) -> None:
    driver.describe(0, DATA, 10, NEXT, SIZE)
    driver.offer(0)
    with pytest.raises(Violation, match="descriptor 128"):
        driver.ring.take()


@pytest.mark.parametrize("length", [0, 10])
def test_a_loop(driver: Driver, length: int) -> None:
    driver.describe(0, DATA, length, NEXT, 1)
    driver.describe(1, DATA, length, NEXT, 0)
    driver.offer(0)
    with pytest.raises(Violation, match="loop"):
        driver.ring.take()


def test_a_chain_is_as_long_as_may_be_and_no_longer(driver: Driver) -> None:
    for index in range(MAX_CHAIN + 1):
        last = index == MAX_CHAIN
        driver.describe(index, DATA, 1, 0 if last else NEXT, 0 if last else index + 1)
    driver.offer(1)
    assert driver.ring.take().size == MAX_CHAIN
    driver.offer(0)
    with pytest.raises(Violation, match=f"more than {MAX_CHAIN} descriptors"):
        driver.ring.take()


def test_bytes_of_a_chain_are_counted_over_its_descriptors(driver: Driver) -> None:
    driver.describe(0, DATA, MAX_BYTES, NEXT, 1)
    driver.describe(1, DATA, 1, 0, 0)
    driver.offer(0)
    with pytest.raises(Violation, match=f"more than {MAX_BYTES} bytes"):
        driver.ring.take()


def test_what_the_guest_writes_to_the_used_ring_is_not_believed(driver: Driver) -> None:
    for head in range(2):
        driver.describe(head, DATA, 10, 0, 0)
        driver.offer(head)
    driver.ring.put(driver.ring.take().head, 0)
    driver.ring.publish()
    driver.put("<H", USED + 2, 0x7777)
    driver.ring.put(driver.ring.take().head, 0)
    assert driver.ring.publish()
    assert driver.index(USED) == 2
