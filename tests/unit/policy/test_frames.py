"""Frames of a worker, which may be taken over by what it evaluates: bounded, and whole or none."""

import socket

import pytest

from agentd.policy import frames


def test_a_frame_has_so_many_bytes_at_most():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(120)
        theirs.sendall(frames.HEAD.pack(frames.MAX_FRAME + 1) + b"x")
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ValueError, match="frame"):
            frames.receive(ours)


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 10])
def test_one_that_is_cut_off_is_none(cut):
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(120)
        with theirs:
            theirs.sendall(frames.packed(b"+answer")[:cut])
        assert frames.receive(ours) is None
