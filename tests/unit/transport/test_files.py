"""Files and tunnels against a scripted agent."""

import contextlib
import io
import threading

import pytest
from tests.unit.transport.conftest import HELLO

from agentd.guest import wire
from agentd.model.errors import BackendLost, GuestError, OperationFailed
from agentd.transport import files as files_module
from agentd.transport import tunnel as tunnel_module
from agentd.transport.files import Change, Entry

ENTRY = {
    "name": "f", "path": "/w/f", "type": "file", "size": 3, "mode": 0o644,
    "uid": 0, "gid": 0, "mtime": 1.5,
}  # fmt: skip


def test_a_file_larger_than_the_window_is_read_whole(agent):
    size = 3 * wire.INITIAL_WINDOW + 17

    def script(peer):
        channel, request = peer.request()
        assert request == {"op": "fs.read", "path": "/w/f", "offset": 5, "length": size}
        window, left = wire.INITIAL_WINDOW, size
        while left:
            if not window:
                _, _, payload = peer.frame()
                window += wire.decode_credit(payload)
            step = min(window, left, 65536)
            peer.send(wire.DATA, channel, b"r" * step)
            window -= step
            left -= step
        peer.send(wire.DATA_EOF, channel)
        peer.event(channel, "result", size=size + 5)

    guest = agent(script)
    assert guest.files.read("/w/f", 5, size) == b"r" * size


def test_a_read_has_a_bound(agent, monkeypatch):
    monkeypatch.setattr(files_module, "MAX_READ", 10)

    def script(peer):
        channel, _ = peer.request()
        peer.send(wire.DATA, channel, b"x" * 11)
        peer.until_closed()

    with pytest.raises(OperationFailed, match="at once"):
        agent(script).files.read("/w/f")


def test_a_listing_has_a_bound_in_bytes_whatever_the_agent_has(agent):
    link = ENTRY | {"type": "link", "target": "t" * 4000}
    sent = []

    def script(peer):
        channel, _ = peer.request()
        with contextlib.suppress(OSError):  # it hangs up
            while len(sent) < 100:
                peer.event(channel, "entries", entries=[link] * 200)
                sent.append(200 * 4000)

    with pytest.raises(OperationFailed, match=r"its listing is over .* 32 MiB"):
        agent(script).files.list("/w")
    assert sum(sent) < 40 << 20


def test_a_listing_has_a_bound(agent, monkeypatch):
    monkeypatch.setattr(files_module, "MAX_ENTRIES", 3)

    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "entries", entries=[ENTRY] * 4)
        peer.until_closed()

    with pytest.raises(OperationFailed, match="over 3 entries"):
        agent(script).files.list("/w")


@pytest.mark.parametrize("make", [lambda d: d, lambda d: [d[:7], d[7:]], io.BytesIO])
def test_a_write_keeps_to_the_credit(agent, make):
    data = bytes(range(256)) * 3000
    got = bytearray()

    def script(peer):
        channel, request = peer.request()
        assert request == {"op": "fs.write", "path": "/w/f", "mode": 0o600, "parents": True}
        window = wire.INITIAL_WINDOW
        while True:
            kind, _, payload = peer.frame()
            if kind == wire.DATA_EOF:
                break
            got.extend(payload)
            window -= len(payload)
            assert window >= 0
            if window == 0:
                window = 200_000
                peer.sock.sendall(wire.encode_credit(channel, window))
        peer.event(channel, "result", size=len(got))

    assert agent(script).files.write("/w/f", make(data), 0o600, True) == len(data)
    assert got == data


def test_a_write_that_is_refused_midway_says_why(agent):
    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "error", errno=28, message="")
        peer.until_closed()

    with pytest.raises(OperationFailed, match="/w/f: No space left on device"):
        agent(script).files.write("/w/f", b"x" * (1 << 20))


def test_entries_and_changes(agent):
    def script(peer):
        channel, request = peer.request()
        if request["op"] == "fs.stat":
            peer.event(channel, "result", entry=ENTRY)
        elif request["op"] == "fs.watch":
            peer.event(channel, "watching")
            peer.event(channel, "change", kind="create", path="/w/f")
            peer.until_closed()
        else:
            peer.event(channel, "result")
        script(peer)

    files = agent(script).files
    assert files.stat("/w/f") == Entry("f", "/w/f", "file", 3, 0o644, 0, 0, 1.5)
    files.mkdir("/w/d", parents=True)
    files.move("/w/f", "/w/d/f")
    files.remove("/w/d", recursive=True)
    changes = files.watch("/w")
    assert next(changes) == Change("create", "/w/f")
    changes.close()


def test_an_agent_that_begins_to_watch_again_and_again_is_let_go_of(agent):
    """Nobody who waits for a change could be woken up, were all of that taken."""

    def script(peer):
        channel, _ = peer.request()
        for _ in range(2):
            peer.event(channel, "watching")
        peer.until_closed()

    changes = agent(script).files.watch("/w")
    with pytest.raises(GuestError, match="began to watch twice"):
        next(changes)


def test_of_an_older_agent_nobody_waits_for_the_begin_of_a_watch(agent):
    asked = threading.Event()

    def script(peer):
        peer.greet(HELLO.replace(b'"watching"', b""))
        channel, _ = peer.request()
        assert asked.wait(60)
        peer.event(channel, "change", kind="create", path="/w/f")
        peer.until_closed()

    changes = agent(script, greeted=False).files.watch("/w")
    asked.set()
    assert next(changes) == Change("create", "/w/f")
    changes.close()


def test_a_tunnel_carries_both_ways(agent):
    def script(peer):
        channel, request = peer.request()
        assert request == {"op": "tcp", "port": 80}
        peer.event(channel, "connected")
        assert peer.frame() == (wire.DATA, channel, b"ping")
        peer.send(wire.DATA, channel, b"pong")
        peer.send(wire.DATA_EOF, channel)
        assert peer.frame() == (wire.DATA, channel, b"more")
        assert peer.frame() == (wire.DATA_EOF, channel, b"")
        peer.event(channel, "end")

    with agent(script).tunnel(80) as tunnel:
        tunnel.send(b"ping")
        assert tunnel.recv() == b"pong"
        assert tunnel.recv() == b""
        tunnel.send(b"more")
        tunnel.half_close()
        assert tunnel.recv() == b""
        with pytest.raises(BackendLost):
            tunnel.send(b"x")


def test_a_tunnel_is_closed_whatever_the_agent_goes_on_to_send(agent, monkeypatch):
    monkeypatch.setattr(tunnel_module, "_LAST_SECONDS", 0.5)
    closed = threading.Event()

    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "connected")
        peer.send(wire.DATA_EOF, channel)
        assert peer.frame() == (wire.DATA_EOF, channel, b"")
        while not closed.wait(0.05):  # within the credit, for hours
            peer.send(wire.DATA, channel, b"x")

    with agent(script).tunnel(80) as it:
        assert it.recv() == b""
        it.half_close()
        late = threading.Timer(120, closed.set)
        late.start()
    assert not closed.is_set()
    closed.set()
    late.cancel()
    late.join()


NOISE = {
    "credit": lambda channel: wire.encode_credit(channel, 1),
    "nothing": lambda channel: wire.encode(wire.DATA, channel),
}


@pytest.mark.parametrize("noise", NOISE)
def test_no_wait_is_longer_whatever_the_agent_sends_without_a_pause(agent, monkeypatch, noise):
    monkeypatch.setattr(tunnel_module, "_LAST_SECONDS", 0.5)
    over = threading.Event()

    def script(peer):
        channel, request = peer.request()
        if request["op"] == "tcp":
            peer.event(channel, "connected")
            peer.send(wire.DATA_EOF, channel)
        much = NOISE[noise](channel) * 10_000
        while not over.is_set():
            peer.sock.sendall(much)

    late = threading.Timer(120, over.set)
    late.start()
    try:
        guest = agent(script, answer_timeout=0.5)
        with guest.tunnel(80) as it:
            assert it.recv(5) == b""
            assert it.send_some(b"x") == 1
            it.half_close()
        with pytest.raises(GuestError, match="did not answer a request in time"):
            guest.files.stat("/a")
        assert not over.is_set()
    finally:
        over.set()
        late.cancel()
        late.join()


def test_a_tunnel_with_a_timeout_and_a_refusal(agent):
    def script(peer):
        channel, request = peer.request()
        if request["port"] == 1:
            peer.event(channel, "error", errno=111, message="")
        else:
            peer.event(channel, "connected")
        peer.until_closed()

    guest = agent(script)
    with pytest.raises(OperationFailed, match="port 1: Connection refused"):
        guest.tunnel(1)
    with guest.tunnel(2) as tunnel, pytest.raises(TimeoutError):
        tunnel.recv(0.02)


def test_data_cannot_end_twice(agent):
    def script(peer):
        channel, _ = peer.request()
        peer.sock.sendall(wire.encode(wire.DATA_EOF, channel) * 2)
        peer.until_closed()

    with pytest.raises(GuestError, match="twice"):
        agent(script).files.read("/w/f")


def test_an_agent_that_stands_still_does_not_hold_up_a_tree(agent):
    """Whether it sends no more, or takes no more."""

    def script(peer):
        channel, request = peer.request()
        if request["op"] == "fs.tar_read":
            peer.send(wire.DATA, channel, b"x" * 512)
        peer.until_closed()

    files = agent(script, answer_timeout=0.1).files
    pieces = files.read_tar("/w/t")
    assert next(pieces) == b"x" * 512
    with pytest.raises(GuestError, match="did not answer"):
        next(pieces)
    with pytest.raises(GuestError, match="did not answer"):
        files.write_tar("/w/t", iter([bytes(1 << 20)]), whole=True)


def test_an_agent_that_goes_amid_a_tree_is_an_error(agent):
    def script(peer):
        channel, _ = peer.request()
        peer.send(wire.DATA, channel, b"x" * 512)

    with pytest.raises(BackendLost):
        list(agent(script).files.read_tar("/w/t"))


@pytest.mark.parametrize("op", ["read", "write"])
def test_an_older_agent_is_told_with_the_fix(agent, op):
    def script(peer):
        channel, request = peer.request()
        text = f"unknown operation {request['op']!r}"
        peer.event(channel, "error", errno=0, message=text)
        peer.until_closed()

    files = agent(script).files
    with pytest.raises(OperationFailed, match="is older") as caught:
        list(files.read_tar("/w/t")) if op == "read" else files.write_tar("/w/t", iter([b"x"]))
    assert "agentd image build" in caught.value.remediation


def test_why_a_tree_is_refused_is_told_in_the_agent_s_words(agent):
    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "error", errno=22, message="t/a\x1b[2J is a fifo")
        peer.until_closed()

    with pytest.raises(OperationFailed, match=r"/w/t: t/a\\x1b\[2J is a fifo") as caught:
        list(agent(script).files.read_tar("/w/t"))
    assert caught.value.errno == 22


def test_a_listing_holds_no_root(agent):
    """Whoever joins a name to a folder of the host's would be at the host's root."""

    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "entries", entries=[ENTRY | {"name": "/", "path": "/"}])
        peer.until_closed()

    with pytest.raises(GuestError, match="the root in it"):
        agent(script).files.list("/w")
