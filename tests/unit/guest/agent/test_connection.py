"""The connection's rules: credit, back-pressure, malformed frames, descriptors, listeners."""

import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from agentd.guest import wire
from agentd.guest.agent import MAX_CONNECTIONS
from agentd.guest.connection import MAX_CHANNELS


def test_hello(client: Any) -> None:
    assert client.hello["agentd"] == 2
    assert "exec" in client.hello["features"]
    assert client.hello["boot"]["pid1"] is False
    assert client.hello["boot"]["uptime_ms"] > 0


def test_frames_may_follow_the_hello_at_once(remote: Any) -> None:
    with remote.stream() as sock:
        sock.settimeout(120)
        request = wire.encode_json(wire.REQUEST, 1, {"op": "list"})
        for byte in wire.HELLO + request:
            sock.sendall(bytes([byte]))
        data = b""
        while b"processes" not in data:
            data += sock.recv(4096)


def test_anything_else_is_protocol_one(remote: Any) -> None:
    with remote.stream() as sock:
        sock.settimeout(120)
        sock.sendall(b'{"command":"echo","args":["hi"]}\n')
        reply = b""
        while not reply.endswith(b"\n"):
            reply += sock.recv(4096)
        assert json.loads(reply)["stdout"] == "aGkK"


def test_a_slow_reader_holds_up_nobody_else(client: Any) -> None:
    flood = client.request("exec", argv=["yes"])
    client.silent.add(flood)
    client.until(lambda: len(client.stdout(flood)) == wire.INITIAL_WINDOW)
    assert client.run("echo", "hi")["code"] == 0
    assert len(client.stdout(flood)) == wire.INITIAL_WINDOW, "no credit, no bytes"
    client.grant(flood, 1000)
    client.until(lambda: len(client.stdout(flood)) == wire.INITIAL_WINDOW + 1000)
    client.control(flood, op="cancel")
    # What it had written before it died waits for credit, and so does its end.
    assert client.run("true")["code"] == 0
    client.grant(flood, 1 << 20)
    assert client.wait(flood)["cause"] == "cancelled"


def test_output_beyond_the_window_survives_the_exit(client: Any) -> None:
    channel = client.request("exec", argv=["head", "-c", "300000", "/dev/zero"])
    client.silent.add(channel)
    client.until(lambda: len(client.stdout(channel)) == wire.INITIAL_WINDOW)
    client.grant(channel, 1 << 20)
    client.wait(channel)
    assert len(client.stdout(channel)) == 300_000


def test_a_host_that_reads_nothing_fills_no_memory(remote: Any) -> None:
    client = remote.connect()
    for _ in range(20):
        channel = client.request("exec", argv=["yes"])
        client.grant(channel, 1 << 30)
    other = remote.connect()
    assert other.run("sleep", "0.5")["code"] == 0
    pages = int(Path(f"/proc/{remote.pid}/statm").read_text().split()[1])
    own = int(Path("/proc/self/statm").read_text().split()[1])
    assert pages < own + (16 << 20) // os.sysconf("SC_PAGE_SIZE")


def test_requests_without_reading_the_answers_are_held_up(remote: Any) -> None:
    client = remote.connect()
    client.sock.settimeout(2)
    frame = wire.encode_json(wire.REQUEST, 1, {"op": "x" * 50})
    with pytest.raises(TimeoutError):
        while True:
            client.sock.sendall(frame * 1000)
    assert remote.connect().run("true")["code"] == 0


def test_stdin_beyond_the_credit_ends_the_connection(client: Any, remote: Any) -> None:
    channel = client.request("exec", argv=["sleep", "600"], stdin="stream")
    client.send(wire.STDIN, channel, b"x" * wire.INITIAL_WINDOW)
    client.send(wire.STDIN, channel, b"x" * wire.INITIAL_WINDOW)
    assert "credit" in client.wait_end()
    assert remote.connect().run("true")["code"] == 0


def test_credit_without_end_ends_the_connection(client: Any, remote: Any) -> None:
    channel = client.request("exec", argv=["sleep", "600"])
    client.sock.sendall(wire.encode_credit(channel, (1 << 32) - 1) * 300)
    assert "credit" in client.wait_end()
    assert remote.connect().run("true")["code"] == 0


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (wire.HEADER.pack(wire.MAX_PAYLOAD + 1, wire.REQUEST, 1), "over the limit"),
        (wire.encode(99, 1), "unknown frame type 99"),
        (wire.encode(wire.STDOUT, 1), "unknown frame type 17"),
        (wire.encode(wire.REQUEST, 1, b"{"), "not JSON"),
        (wire.encode(wire.REQUEST, 1, b"[]"), "not a JSON object"),
        (wire.encode(wire.REQUEST, 1, b"[" * 100_000), "not JSON"),
    ],
)
def test_a_malformed_frame_ends_the_connection_not_the_agent(
    client: Any, remote: Any, frame: bytes, reason: str
) -> None:
    client.sock.sendall(frame)
    assert reason in client.wait_end()
    assert remote.connect().run("true")["code"] == 0


def test_a_truncated_frame(client: Any) -> None:
    client.sock.sendall(wire.encode_json(wire.REQUEST, 1, {"op": "list"})[:-1])
    client.sock.shutdown(socket.SHUT_WR)
    assert "inside a frame" in client.wait_end()


def test_a_channel_number_in_use(client: Any) -> None:
    client.request("exec", argv=["sleep", "600"])
    client.sock.sendall(wire.encode_json(wire.REQUEST, 1, {"op": "list"}))
    assert "open already" in client.wait_end()


def test_frames_for_a_channel_that_has_ended_are_dropped(client: Any) -> None:
    channel = client.request("exec", argv=["true"])
    client.wait(channel)
    client.send(wire.STDIN, channel, b"late")
    client.control(channel, op="cancel")
    client.grant(channel, 5)
    assert client.run("true")["code"] == 0


def test_goaway_from_the_host(client: Any) -> None:
    client.sock.sendall(wire.encode_json(wire.GOAWAY, 0, {"reason": "done"}))
    assert client.wait_end() is None


def test_unknown_operation(client: Any) -> None:
    error = client.wait(client.request("dance"))
    assert (error["event"], "'dance'" in error["message"]) == ("error", True)


def test_channels_are_bounded(client: Any) -> None:
    reader, writer = os.pipe()
    sleep = client.request("exec", argv=["sleep", "600"], tag="one", detach=True)
    client.wait(sleep, "started")
    attached = [client.request("attach", tag="one") for _ in range(MAX_CHANNELS)]
    refused = client.wait(client.request("exec", writer, argv=["true"], fds=["stdout"]))
    os.close(writer)
    assert (refused["event"], "channels are open" in refused["message"]) == ("error", True)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b"", "the descriptor was closed"
    client.control(attached[0], op="cancel")
    for channel in attached:
        assert client.wait(channel)["cause"] == "cancelled"
    assert client.run("true")["code"] == 0


def test_descriptors_nobody_claims_are_closed(client: Any) -> None:
    reader, writer = os.pipe()
    client.wait(client.request("list", writer))
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b""


def test_too_many_descriptors(client: Any) -> None:
    reader, writer = os.pipe()
    fds = [writer] * (wire.MAX_PENDING_FDS + 1)
    client.request("list", *fds)
    os.close(writer)
    assert "descriptors" in client.wait_end()
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b""


def test_descriptors_wait_for_a_frame_in_parts(client: Any) -> None:
    reader, writer = os.pipe()
    frame = wire.encode_json(
        wire.REQUEST, 1, {"op": "exec", "argv": ["echo", "hi"], "fds": ["stdout"]}
    )
    socket.send_fds(client.sock, [frame[:20]], [writer])
    os.close(writer)
    client.sock.sendall(frame[20:])
    client.wait(1)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b"hi\n"


def test_accept(client: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        accepted = client.wait(client.request("sys.accept", theirs.fileno()))
        theirs.close()
        assert accepted["event"] == "result"
        ours.settimeout(120)
        ours.sendall(wire.HELLO)
        assert ours.recv(4096).startswith(b'{"agentd":2')


def test_accept_refuses_what_is_no_stream(client: Any) -> None:
    reader, writer = os.pipe()
    refused = client.wait(client.request("sys.accept", writer))
    os.close(writer)
    assert refused["event"] == "error"
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b""
    assert client.wait(client.request("sys.accept"))["event"] == "error"


def test_connections_are_bounded_and_freed(remote: Any) -> None:
    streams = [remote.stream() for _ in range(MAX_CONNECTIONS)]
    for stream in streams:
        stream.settimeout(120)
        stream.sendall(wire.HELLO)
        assert stream.recv(4096)
    with remote.stream() as refused:
        refused.settimeout(120)
        assert refused.recv(1) == b"", "closed at once"
    for stream in streams:
        stream.close()
    # The last of them is known to be gone when the next one is served.
    while True:
        with remote.stream() as again:
            again.settimeout(120)
            try:
                again.sendall(wire.HELLO)
                if again.recv(4096):
                    return
            except (BrokenPipeError, ConnectionResetError):
                continue


def test_accepted_connections_are_bounded_too(client: Any, remote: Any) -> None:
    streams = [remote.stream() for _ in range(MAX_CONNECTIONS - 1)]
    for stream in streams:
        stream.settimeout(120)
        stream.sendall(wire.HELLO)
        assert stream.recv(4096)
    ours, theirs = socket.socketpair()
    with ours:
        refused = client.wait(client.request("sys.accept", theirs.fileno()))
        theirs.close()
        assert (refused["event"], refused["errno"]) == ("error", errno.EAGAIN)
        assert ours.recv(1) == b""
    for stream in streams:
        stream.close()


def test_nothing_is_left_open_in_the_agent(remote: Any) -> None:
    watcher = remote.connect()
    watcher.run("true")
    folder = f"/proc/{remote.pid}/fd"
    before = len(os.listdir(folder))
    client = remote.connect()
    client.run("cat", stdin="none")
    client.run("true", pty={"rows": 2, "cols": 2})
    client.run("no-such-program", stdin="stream")
    client.request("exec", argv=["sleep", "600"], stdin="stream")
    client.run("yes", limits={"output": 10})
    client.close()
    while len(os.listdir(folder)) > before:
        watcher.run("true")
    assert len(os.listdir(folder)) == before
