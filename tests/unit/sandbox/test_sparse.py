import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.sandbox.sparse import digest

PIECE = 64 << 10
EXTENTS = st.lists(
    st.tuples(st.integers(0, 6 * PIECE), st.binary(min_size=1, max_size=3 * 4096)), max_size=4
)


def digest_of(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return digest(fd)
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("sparse")


@given(EXTENTS, st.integers(0, 8 * PIECE))
def test_holes_and_zeros_are_the_same(place, extents, size):
    with open(place / "sparse", "wb") as file:
        file.truncate(size)
        for offset, data in extents:
            file.seek(offset)
            file.write(data)
    content = (place / "sparse").read_bytes()
    (place / "full").write_bytes(content)
    assert digest_of(place / "sparse") == digest_of(place / "full")


@given(st.binary(max_size=3 * PIECE), st.data())
def test_any_bit_counts(place, content, data):
    if not content:
        return
    where = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[where] ^= data.draw(st.integers(1, 255))
    (place / "a").write_bytes(content)
    (place / "b").write_bytes(changed)
    assert digest_of(place / "a") != digest_of(place / "b")


def test_the_size_and_the_place_count(place):
    def of(size, offset):
        with open(place / "file", "wb") as file:
            file.truncate(size)
            file.seek(offset)
            file.write(b"x")
        return digest_of(place / "file")

    assert len({of(9 * PIECE, 0), of(9 * PIECE, PIECE), of(9 * PIECE + 1, 0), of(1 << 30, 0)}) == 4


def test_a_terabyte_of_nothing_takes_no_time(place):
    with open(place / "file", "wb") as file:
        file.truncate(1 << 40)
    assert len(digest_of(place / "file")) == 64
    os.unlink(place / "file")
