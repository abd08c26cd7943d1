"""A stream that one host after the other has, as a port of a machine is: who comes next is told by
the line that it says first."""

import os
import socket
from collections.abc import Iterator

import pytest

from agentd.guest import virtio, wire
from agentd.guest.agent import create
from agentd.guest.connection import report
from agentd.guest.loop import Loop


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """The hosts' end."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            loop = Loop(on_error=report)
            agent = create(loop, pid1=False)
            fd = theirs.detach()
            virtio.serve(agent, (fd, fd), agent.stop, port=True)
            loop.run()
            os._exit(0)
        finally:
            os._exit(1)
    theirs.close()
    ours.settimeout(60)
    with ours:
        yield ours
    assert os.waitpid(pid, 0)[1] == 0


def test_a_host_of_protocol_two_follows_one_of_protocol_one(port: socket.socket) -> None:
    port.sendall(b'{"command":"true"}\n')
    assert b'"error":null' in port.recv(1 << 16)
    port.sendall(wire.HELLO + wire.encode_json(wire.REQUEST, 1, {"op": "sys.ping"}))
    said = port.recv(1 << 16)
    assert said.startswith(b'{"agentd":2,'), said
    while b'"unix_ns"' not in said:
        data = port.recv(1 << 16)
        assert data, said
        said += data
