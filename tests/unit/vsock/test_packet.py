"""Packets in chains that are split anywhere."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.vsock import packet
from agentd.vsock.errors import Violation
from agentd.vsock.ring import DescriptorChain

U32 = st.integers(0, 2**32 - 1)
FIELDS = st.tuples(
    *(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), U32, U32),
    *(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1), U32, U32, U32),
)


def split(content: bytes, cuts: list[int]) -> DescriptorChain:
    edges = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    pairs = pairwise(edges)
    parts = [memoryview(bytearray(content[a:b])) for a, b in pairs if a < b]
    return DescriptorChain(0, parts, len(content))


def header(fields: tuple[int, ...], length: int) -> bytes:
    return packet.HEADER.pack(*fields[:4], length, *fields[4:])


CUTS = st.lists(st.integers(0, 10_000), max_size=6)


@given(FIELDS, st.binary(max_size=200), st.integers(0, 50), CUTS)
def test_a_packet_is_read_wherever_it_is_split(
    fields: tuple[int, ...], data: bytes, slack: int, cuts: list[int]
) -> None:
    chain = split(header(fields, len(data)) + data + bytes(slack), cuts)
    got = packet.parse(chain)
    assert (*got[:4], *got[5:10]) == fields
    assert b"".join(got.data) == data
    assert got.length == len(data)


@given(st.binary(min_size=44, max_size=44), st.integers(0, 100), CUTS)
def test_a_header_is_written_wherever_the_buffer_is_split(
    content: bytes, slack: int, cuts: list[int]
) -> None:
    chain = split(bytes(44 + slack), cuts)
    packet.write(chain, content)
    assert b"".join(chain.parts) == content + bytes(slack)


@given(st.binary(max_size=100), CUTS, st.integers(0, 110), st.integers(0, 110))
def test_cut_is_a_slice(content: bytes, cuts: list[int], start: int, length: int) -> None:
    chain = split(content, cuts)
    assert b"".join(packet.cut(chain.parts, start, length)) == content[start : start + length]


@pytest.mark.parametrize("size", [0, 1, 43])
def test_a_packet_has_a_header(size: int) -> None:
    with pytest.raises(Violation, match=f"a packet of {size} bytes"):
        packet.parse(split(bytes(size), [7]))


@pytest.mark.parametrize(("said", "there"), [(11, 10), (2**32 - 1, 0), (70_000, 70_000)])
def test_a_packet_is_no_longer_than_it_may_be(said: int, there: int) -> None:
    content = header((42, 2, 1, 1, 1, packet.RW, 0, 0, 0), said) + bytes(there)
    with pytest.raises(Violation, match=f"says it has {said} bytes"):
        packet.parse(split(content, [44]))
