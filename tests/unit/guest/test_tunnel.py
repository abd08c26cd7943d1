import errno
import socket
import threading

import pytest

from agentd.guest import wire
from agentd.guest.tunnel import OPERATIONS

TCP = OPERATIONS["tcp"]


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        yield server


def serve(listener, handle):
    def body():
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(120)
            handle(peer)

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def echo(peer):
    while data := peer.recv(65536):
        peer.sendall(data)
    peer.sendall(b"after the half-close")


def test_both_ways_under_small_credit_and_half_close(new_channel, listener):
    thread = serve(listener, echo)
    content = bytes(range(256)) * 2000
    channel = new_channel(credit=5000).start(TCP, port=listener.getsockname()[1])
    channel.operation.on_data(wire.DATA, content[:1000])  # before it is connected
    channel.run(lambda: bool(channel.events))
    assert channel.events == [{"event": "connected"}]
    channel.operation.on_data(wire.DATA, content[1000:])
    channel.operation.on_eof(wire.DATA_EOF)
    channel.run()
    thread.join()
    assert channel.last == {"event": "end"}
    assert channel.data == content + b"after the half-close"
    assert channel.frames[-1] == (wire.DATA_EOF, b"")
    assert channel.granted == len(content)


def test_the_peer_may_end_first(new_channel, listener):
    got = []

    def handle(peer):
        peer.sendall(b"bye")
        peer.shutdown(socket.SHUT_WR)
        got.append(peer.recv(100))

    thread = serve(listener, handle)
    channel = new_channel().start(TCP, port=listener.getsockname()[1])
    channel.run(lambda: (wire.DATA_EOF, b"") in channel.frames)
    assert (channel.data, channel.last) == (b"bye", None)
    channel.operation.on_data(wire.DATA, b"still here")
    channel.operation.on_eof(wire.DATA_EOF)
    channel.run()
    thread.join()
    assert (got, channel.last) == ([b"still here"], {"event": "end"})


def test_a_listener_on_ipv6_only(new_channel):
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 loopback: {error}")
    with server:
        channel = new_channel().start(TCP, port=server.getsockname()[1])
        channel.run(lambda: bool(channel.events))
        assert channel.events == [{"event": "connected"}]


def test_a_refused_port_is_told_with_its_number(new_channel, listener):
    port = listener.getsockname()[1]
    listener.close()
    last = new_channel().start(TCP, port=port).run().last
    assert (last["event"], last["errno"]) == ("error", errno.ECONNREFUSED)
    assert str(port) in last["message"]


@pytest.mark.parametrize("port", [0, 65536, "80", None, True])
def test_bad_ports(new_channel, port):
    assert new_channel().start(TCP, port=port).last["event"] == "error"
    assert new_channel().start(TCP).last["event"] == "error"


def test_cancelled_while_connected_it_closes_the_socket(new_channel, listener):
    channel = new_channel().start(TCP, port=listener.getsockname()[1])
    channel.run(lambda: bool(channel.events))
    peer, _ = listener.accept()
    with peer:
        channel.operation.close()
        assert peer.recv(1) == b""
