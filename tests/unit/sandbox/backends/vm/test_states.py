"""The digest of a sparse file, and the ring that bounds a console."""

import os
from pathlib import Path

import pytest

from agentd.sandbox.backends.vm import states
from agentd.sandbox.backends.vm.ring import LogRing


def _digest(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        return states.digest(fd)
    finally:
        os.close(fd)


def _write(path: Path, *parts: tuple[int, bytes], size: int = 8 << 20) -> Path:
    with open(path, "wb") as file:
        for place, data in parts:
            file.seek(place)
            file.write(data)
        file.truncate(size)
    return path


def test_the_same_content_has_the_same_digest(tmp_path: Path) -> None:
    first = _write(tmp_path / "a", (1 << 20, b"x" * 4096))
    second = _write(tmp_path / "b", (1 << 20, b"x" * 4096))
    assert _digest(first) == _digest(second)


@pytest.mark.parametrize(
    ("parts", "size"),
    [
        ([(1 << 20, b"y" * 4096)], 8 << 20),
        ([(2 << 20, b"x" * 4096)], 8 << 20),
        ([(1 << 20, b"x" * 4096)], 9 << 20),
        ([(1 << 20, b"x" * 4096), (5 << 20, b"x")], 8 << 20),
        ([], 8 << 20),
    ],
)
def test_other_bytes_places_and_sizes_have_another(
    tmp_path: Path, parts: list[tuple[int, bytes]], size: int
) -> None:
    usual = _write(tmp_path / "a", (1 << 20, b"x" * 4096))
    other = _write(tmp_path / "b", *parts, size=size)
    assert _digest(usual) != _digest(other)


def test_an_empty_file(tmp_path: Path) -> None:
    assert _digest(_write(tmp_path / "a", size=0)) != _digest(_write(tmp_path / "b", size=1))


def test_the_ring_keeps_the_end() -> None:
    ring = LogRing(10)
    for part in (b"0123456789", b"abc", b"x" * 3):
        ring.add(part)
    assert ring.text(100) == "6789abcxxx"
    assert ring.text(2) == "xx"
    ring.add(b"y" * 1000)
    assert ring.text(100) == "y" * 10


def test_the_ring_takes_any_bytes() -> None:
    ring = LogRing(10)
    ring.add(b"\xff\x00ok")
    assert ring.text(10) == "\ufffd\x00ok"
