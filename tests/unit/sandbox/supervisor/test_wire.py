"""Messages of a supervisor and its daemon: what is none is an error, and leaves nothing open."""

import json
import os
import socket
from collections.abc import Iterator

import pytest

from agentd.model.errors import InvalidInput
from agentd.sandbox.supervisor import wire

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(120)
        yield ours, theirs


def _check_closed(reader: int) -> None:
    """Nobody has the other end any more: else there is nothing to read yet, which is an error."""
    try:
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


@pytest.mark.parametrize(
    "said",
    [b"[]", b'"text"', b"1", b"{", b"\xff", b'{"n": "' + b"x" * wire.MAX_MESSAGE + b'"}'],
    ids=["list", "text", "number", "cut", "bytes", "long"],
)
def test_what_is_no_message_takes_along_what_came_with_it(pair: Pair, said: bytes) -> None:
    ours, theirs = pair
    reader, writer = os.pipe2(os.O_NONBLOCK)
    socket.send_fds(theirs, [said], [writer])
    os.close(writer)
    with pytest.raises((OSError, ValueError)):
        wire.receive(ours)
    _check_closed(reader)


def test_descriptors_come_close_on_exec_and_no_more_than_a_message_has(pair: Pair) -> None:
    ours, theirs = pair
    reader, writer = os.pipe2(os.O_NONBLOCK)
    wire.send(theirs, {"n": 1}, [writer])
    message, (found,) = wire.receive(ours)
    assert message == {"n": 1} and not os.get_inheritable(found)
    os.close(found)
    socket.send_fds(theirs, [b'{"n": 2}'], [writer] * 5)
    os.close(writer)
    message, fds = wire.receive(ours)
    assert (message["n"], fds) == (2, []) and "error" in message
    _check_closed(reader)


def test_what_is_too_long_is_refused_before_it_is_sent(pair: Pair) -> None:
    ours, theirs = pair
    rest = wire.MAX_MESSAGE - len(json.dumps({"n": ""}))
    with pytest.raises(InvalidInput, match="over"):
        wire.send(theirs, {"n": "x" * (rest + 1)})
    wire.send(theirs, {"n": "x" * rest})
    assert wire.receive(ours)[0] == {"n": "x" * rest}
