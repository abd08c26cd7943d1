"""Against the library whose start we do not want to wait for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from agentd.client.http import frames
from agentd.client.http.frames import BINARY, CLOSE, PING, TEXT, Frames, Malformed, encode


def bytes_of(opcode, data, *, fin=True, mask=False):
    return Frame(opcode, data, fin).serialize(mask=mask)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 1_000_003])
@pytest.mark.parametrize("kind", [TEXT, BINARY])
def test_what_we_send_is_understood(kind, size):
    data = bytes(range(256)) * (size // 256 + 1)
    wire = encode(kind, data[:size])
    frame = parsed(wire)
    assert (frame.opcode, bytes(frame.data), frame.fin) == (Opcode(kind), data[:size], True)


def parsed(wire):
    reader = StreamReader()
    reader.feed_data(wire)
    parser = Frame.parse(reader.read_exact, mask=True, max_size=None)
    try:
        next(parser)
    except StopIteration as done:
        return done.value
    raise AssertionError("the frame is not whole")


@given(
    st.lists(
        st.tuples(
            st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.PING]), st.binary(max_size=120)
        )
    ),
    st.integers(1, 50),
)
def test_what_comes_is_the_same_however_it_is_cut(messages, step):
    wire = b"".join(bytes_of(kind, data) for kind, data in messages)
    reader, found = Frames(), []
    for at in range(0, len(wire), step):
        found += reader.feed(wire[at : at + step])
    assert [(m.kind, m.data) for m in found] == [(int(kind), data) for kind, data in messages]


def test_parts_are_put_together_around_a_ping():
    wire = bytes_of(Opcode.BINARY, b"a", fin=False) + bytes_of(Opcode.PING, b"p")
    wire += bytes_of(Opcode.CONT, b"b", fin=False) + bytes_of(Opcode.CONT, b"c")
    found = Frames().feed(wire + bytes_of(Opcode.TEXT, b"next"))
    assert [(m.kind, m.data) for m in found] == [(PING, b"p"), (BINARY, b"abc"), (TEXT, b"next")]


@pytest.mark.parametrize(
    "wire",
    [
        b"\xc1\x00",  # an extension's bit
        pytest.param(bytes_of(Opcode.TEXT, b"x", mask=True), id="masked"),
        bytes_of(Opcode.CONT, b"x"),  # of nothing
        bytes_of(Opcode.TEXT, b"x", fin=False) + bytes_of(Opcode.TEXT, b"y"),
        b"\x83\x00",  # an opcode that is not used
        b"\x8b\x00",
        b"\x09\x00",  # a ping in parts
        b"\x89\x7e\x00\x7e" + bytes(126),  # a long ping
        b"\x82\x7f" + (frames.MAX_MESSAGE + 1).to_bytes(8, "big"),
    ],
)
def test_what_breaks_the_protocol(wire):
    with pytest.raises(Malformed):
        Frames().feed(wire)


def test_a_message_is_bounded_in_parts_too(monkeypatch):
    monkeypatch.setattr(frames, "MAX_MESSAGE", 10)
    reader = Frames()
    reader.feed(bytes_of(Opcode.BINARY, b"123456", fin=False))
    with pytest.raises(Malformed, match="larger than 10"):
        reader.feed(bytes_of(Opcode.CONT, b"123456"))


def test_no_two_frames_have_the_same_mask():
    assert len({encode(BINARY, b"data")[2:6] for _ in range(8)}) == 8


def test_a_close():
    (message,) = Frames().feed(bytes_of(Opcode.CLOSE, b"\x03\xe8bye"))
    assert (message.kind, message.data[2:]) == (CLOSE, b"bye")
