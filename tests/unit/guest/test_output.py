"""The ring's cursors and the pump's bounds."""

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from agentd.guest.loop import Loop
from agentd.guest.output import READ_BYTES, WIDE_BYTES, OutputRing, Pump


def test_ring_keeps_the_last_bytes_under_absolute_cursors() -> None:
    ring = OutputRing(size=4)
    ring.append(b"abc")
    assert (ring.start, ring.end, ring.read(1, 9)) == (0, 3, (1, b"bc"))
    ring.append(b"defg")
    assert (ring.start, ring.end, len(ring)) == (3, 7, 4)
    assert ring.read(0, 2) == (3, b"de")
    assert ring.read(7, 5) == (7, b"")
    ring.append(b"0123456789")
    assert ring.read(0, 99) == (13, b"6789")


class Rig:
    def __init__(self, loop: Loop, limit: int | None) -> None:
        self.window = 1 << 20
        self.said: list[str] = []
        self.data = b""
        reader, self.writer = os.pipe()
        self.pump = Pump(
            loop,
            reader,
            limit=limit,
            window=lambda: self.window,
            deliver=self._deliver,
            on_over=lambda: self.said.append("over"),
            on_end=lambda: self.said.append("end"),
        )

    def _deliver(self, data: bytes) -> None:
        self.data += data
        self.window -= len(data)


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    loop = Loop()
    made: list[Rig] = []

    def make(limit: int | None = None) -> Rig:
        made.append(Rig(loop, limit))
        return made[-1]

    yield make
    for one in made:
        one.pump.close()
        os.close(one.writer)
    loop.close()


def test_drain_ends_though_the_pipe_is_held_open(rig: Callable[..., Rig]) -> None:
    one = rig()
    os.write(one.writer, b"left over")
    one.pump.drain()
    assert (one.data, one.said) == (b"left over", ["end"])
    one.pump.drain()
    assert one.said == ["end"]


def test_drain_delivers_only_what_was_there_at_the_exit(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.window = 4
    os.write(one.writer, b"before")
    one.pump.drain()
    assert (one.data, one.said) == (b"befo", [])
    os.write(one.writer, b"after")
    one.window = 100
    # As the loop does once the window has opened.
    one.pump._ready(1)
    one.pump._ready(1)
    assert (one.data, one.said) == (b"before", ["end"])


def test_the_limit_needs_no_window_to_be_noticed(rig: Callable[..., Rig]) -> None:
    one = rig(limit=4)
    one.window = 4
    os.write(one.writer, b"123456")
    one.pump.drain()
    assert (one.data, one.said, one.pump.total) == (b"1234", ["over", "end"], 4)


def test_a_stream_that_fills_its_pipe_again_and_again_is_read_in_larger_pieces(
    rig: Callable[..., Rig],
) -> None:
    one = rig()
    one.window = 1 << 30
    os.set_blocking(one.writer, False)
    pieces: list[int] = []
    deliver = one._deliver
    one.pump._deliver = lambda data: (pieces.append(len(data)), deliver(data))[1]
    for _ in range(200):
        with contextlib.suppress(BlockingIOError):
            os.write(one.writer, bytes(WIDE_BYTES))
        one.pump._step()
    assert pieces[0] == READ_BYTES and max(pieces) == WIDE_BYTES
    assert one.data == bytes(sum(pieces))
