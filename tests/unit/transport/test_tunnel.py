"""A tunnel that must never wait for the other end to read."""

import select
import threading

import pytest
from tests.unit.transport.conftest import Peer

from agentd.guest import wire
from agentd.model.errors import BackendLost
from agentd.transport.connection import ready


def _send_all_there_is_credit_for(tunnel) -> int:
    total = 0
    while sent := tunnel.send_some(b"x" * (1 << 20)):
        total += sent
    return total


def test_what_the_credit_does_not_allow_is_not_waited_for(agent):
    grant = 1000
    full = threading.Event()

    def script(peer: Peer) -> None:
        channel, _ = peer.request()
        peer.event(channel, "connected")
        got = 0
        while got < wire.INITIAL_WINDOW:
            got += len(peer.frame()[2])
        full.wait(120)
        peer.send(wire.DATA, channel, b"while you wait")
        peer.sock.sendall(wire.encode_credit(channel, grant))
        assert len(peer.frame()[2]) == grant
        peer.until_closed()

    with agent(script).tunnel(80) as tunnel:
        assert _send_all_there_is_credit_for(tunnel) == wire.INITIAL_WINDOW
        full.set()
        assert tunnel.recv(5) == b"while you wait"
        while not (sent := _send_all_there_is_credit_for(tunnel)):
            assert ready(tunnel.fileno(), select.POLLIN, None)  # it tells of credit, too
        assert sent == grant


def test_sending_to_a_port_that_closed(agent):
    def script(peer: Peer) -> None:
        channel, _ = peer.request()
        peer.event(channel, "connected")
        peer.event(channel, "end")
        peer.until_closed()

    with agent(script).tunnel(80) as tunnel:
        with pytest.raises(BackendLost):
            while True:
                tunnel.send_some(b"x")
        assert tunnel.recv(5) == b""
