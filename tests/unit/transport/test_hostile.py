"""A hostile agent. The control in every case: the host's own checks, and a dropped connection."""

import array
import contextlib
import json
import os
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.guest import wire
from agentd.model.errors import AgentdError, BackendLost, GuestError, OperationFailed
from agentd.model.spec import ExecRequest
from agentd.transport.connection import WIDE_WINDOW, Channel
from agentd.transport.events import CommandChannel
from agentd.transport.guest import Guest

TRUE = ExecRequest(("true",))
STARTED = wire.encode_json(wire.EVENT, 1, {"event": "started", "pid": 7})
EXITED = {"event": "exited", "code": 0, "signal": None, "cause": "exited"}


def event(value, channel=1):
    return wire.encode_json(wire.EVENT, channel, value)


@pytest.mark.parametrize(
    "answer",
    [
        wire.encode(wire.STDOUT, 1, b"early"),
        STARTED + wire.encode(wire.DATA, 1, b"x"),
        STARTED + wire.encode(wire.DATA_EOF, 1),
        STARTED + STARTED,
        STARTED + wire.encode(wire.STDOUT, 2, b"x"),
        STARTED + wire.encode(wire.STDOUT, 0, b"x"),
        STARTED + wire.encode(wire.CREDIT, 1, b"xyz"),
        STARTED + wire.encode(wire.STDOUT, 1, bytes(wire.INITIAL_WINDOW + 1)),
        STARTED + wire.encode(wire.GOAWAY, 0, b'{"reason":"\\u001b[2J"}'),
        STARTED + wire.encode(wire.GOAWAY, 0, b"\xff"),
        STARTED + wire.encode(wire.REQUEST, 1, b"{}"),
        STARTED + wire.HEADER.pack(wire.MAX_PAYLOAD + 1, wire.STDOUT, 1),
        STARTED + event(EXITED, channel=3),
        event(EXITED),
        event({"event": "started", "pid": -1}),
        event({"event": "started", "pid": 1 << 70}),
        event({"event": "started"}),
        event({"event": "attached", "pid": 7}),
        event({"event": "failed", "errno": "x"}),
        event({"event": 5}),
        event({"event": "nonsense"}),
        STARTED + event(EXITED | {"code": 999}),
        STARTED + event(EXITED | {"code": None}),
        STARTED + event(EXITED | {"signal": 1000}),
        STARTED + event(EXITED | {"cause": "policy_denied"}),
        STARTED + event(EXITED | {"usage": {"wall_ms": -1}}),
        STARTED + event(EXITED | {"truncated": "yes"}),
        wire.encode(wire.EVENT, 1, b"\xff\xfe"),
        wire.encode(wire.EVENT, 1, b'{"event":"started","pid":7,"z":' + b"[" * 100_000),
        wire.encode(wire.EVENT, 1, b'{"event":"started","pid":7,"z":"\\ud800' + b"[" * 9),
    ],
)
def test_what_a_sane_agent_would_not_send_is_a_guest_error(agent, answer):
    dropped = []

    def script(peer):
        peer.request()
        peer.sock.sendall(answer)
        peer.until_closed()
        dropped.append(True)

    guest = agent(script)
    with pytest.raises(GuestError) as caught:
        guest.run(TRUE)
    assert str(caught.value).isprintable()
    guest.fake.close()
    assert dropped == [True]


@pytest.mark.parametrize("passes", [False, True])
@pytest.mark.parametrize("last", [b"", b"\0\0", STARTED, STARTED + b"\0\0\0\1\x11"])
def test_an_agent_that_goes_is_a_lost_backend_or_a_guest_error(agent, passes, last):
    def script(peer):
        peer.request()
        peer.sock.sendall(last)

    guest = agent(script, passes_descriptors=passes)
    with pytest.raises((BackendLost, GuestError)):
        guest.run(TRUE)


def test_descriptors_from_inside_are_discarded(agent):
    """Control: recv without room for control messages; the kernel closes what was attached."""

    def script(peer):
        channel, _ = peer.request()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
        peer.sock.sendmsg([STARTED], rights)
        peer.sock.sendmsg([wire.encode(wire.STDOUT, channel, b"hi")], rights)
        peer.exited(channel)
        asked.append(peer.frame())

    asked = []
    guest = agent(script)
    before = set(os.listdir("/proc/self/fd"))
    assert guest.run(TRUE)[1] == b"hi"
    after = set(os.listdir("/proc/self/fd"))
    # The connection's two ends, kept for reuse.
    assert len(after - before) <= 2


def test_empty_output_frames_are_not_kept():
    """They cost no credit: kept, they would fill the memory."""
    command = CommandChannel(Channel(1), TRUE, passed=False)
    command.receive((wire.EVENT, 1, b'{"event":"started","pid":7}'))
    assert command.receive((wire.STDOUT, 1, b"")) is None
    assert command.receive((wire.STDOUT, 1, b"x")) == ("stdout", b"x")


def test_passed_streams_do_not_come_in_band(agent):
    def script(peer):
        peer.request()
        peer.sock.sendall(STARTED + wire.encode(wire.STDOUT, 1, b"x"))
        peer.until_closed()

    with pytest.raises(GuestError, match="out of place"):
        agent(script, passes_descriptors=True).run(TRUE)


def test_a_stream_of_much_gets_a_wider_window_once_and_no_more_than_that():
    channel = Channel(1)
    half = wire.INITIAL_WINDOW // 2
    channel.accept((wire.STDOUT, 1, bytes(half)))
    assert channel.consumed(half - 1) == b"" and channel.consumed(1) != b""
    channel.accept((wire.STDOUT, 1, bytes(WIDE_WINDOW)))  # all that it allows
    with pytest.raises(GuestError, match="1 bytes over its credit"):
        channel.accept((wire.STDOUT, 1, b"x"))
    channel = Channel(1)
    for size in (half, WIDE_WINDOW // 2, WIDE_WINDOW // 2):
        channel.accept((wire.STDOUT, 1, bytes(size)))
        granted = wire.decode_credit(channel.consumed(size)[wire.HEADER.size :])
    assert granted == WIDE_WINDOW // 2


def test_credit_cannot_grow_for_ever():
    channel = Channel(1)
    for _ in range(300):
        channel.accept((wire.CREDIT, 1, b"\xff\xff\xff\xff"))
    assert channel.send_credit == 1 << 40


def test_error_text_is_cut_and_escaped(agent):
    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "error", errno=0, message="\x1b]0;owned\x07\n\u202e" + "x" * 10_000)

    with pytest.raises(OperationFailed) as caught:
        agent(script).run(TRUE)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_listing_cannot_name_a_path(agent):
    entry = {
        "path": "/d/x", "type": "file", "size": 1, "mode": 420, "uid": 0, "gid": 0, "mtime": 1.0,
    }  # fmt: skip

    names = ["\udc80ok", "..", "../../etc/passwd", "a/b", "", "x\0"]
    answers = iter(names)

    def script(peer):
        with contextlib.suppress(EOFError, ConnectionError):
            while True:  # the host asks again on the same connection
                channel, _ = peer.request()
                peer.event(channel, "entries", entries=[{**entry, "name": next(answers)}])
                peer.event(channel, "result", count=1)

    guest = agent(script)
    assert guest.files.list("/d")[0].name == names[0]
    for _ in names[1:]:
        with pytest.raises(GuestError):
            guest.files.list("/d")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
@pytest.mark.parametrize("name", ["ok", "\\udc80"])
def test_what_is_no_number_is_a_guest_error(agent, number, name):
    entry = (
        f'{{"name":"{name}","path":"/d/x","type":"file","size":1,"mode":420,"uid":0,"gid":0,'
        f'"mtime":{number}}}'
    )

    def script(peer):
        channel, _ = peer.request()
        told = f'{{"event":"entries","entries":[{entry}]}}'.encode()
        peer.sock.sendall(wire.encode(wire.EVENT, channel, told))
        peer.event(channel, "result", count=1)
        peer.until_closed()

    with pytest.raises(GuestError, match="malformed"):
        agent(script).files.list("/d")


def test_a_read_cannot_bring_more_than_was_asked_for(agent):
    def script(peer):
        channel, _ = peer.request()
        peer.send(wire.DATA, channel, b"12345")
        peer.until_closed()

    with pytest.raises(GuestError, match="more of a file"):
        agent(script).files.read("/x", length=4)


def frames() -> st.SearchStrategy[bytes]:
    kinds = st.sampled_from(sorted(wire.FROM_AGENT | {0, 1, 99}))
    values = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["event", "pid", "code", "signal", "cause", "usage", "entry", "x"])
                | st.text(max_size=3),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    )
    events = st.sampled_from(["started", "failed", "exited", "result", "error", "entries", "end"])
    objects = st.builds(
        lambda name, value: json.dumps(
            {"event": name, **(value if isinstance(value, dict) else {})}
        ).encode(),
        events,
        values,
    )
    payloads = objects | st.binary(max_size=40)
    return st.builds(wire.encode, kinds, st.sampled_from([0, 1, 1, 1, 2]), payloads)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(frames(), max_size=6).map(b"".join) | st.binary(max_size=200),
    st.booleans(),
    st.sampled_from(["run", "read", "list", "stat", "call", "write", "tunnel", "attach"]),
)
def test_no_bytes_hang_or_break_the_host(answer, started, use):
    """Control: every answer ends in a value or in one of our errors; the pool is left clean."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b'{"agentd":2}\n' + (STARTED if started else b"") + answer)
        theirs.shutdown(socket.SHUT_WR)
        guest = Guest(lambda: ours, passes_descriptors=False, answer_timeout=5.0)
        try:
            {
                "run": lambda: guest.run(ExecRequest(("true",), timeout=5.0), stdin=b"in"),
                "read": lambda: guest.files.read("/x"),
                "list": lambda: guest.files.list("/x"),
                "stat": lambda: guest.files.stat("/x"),
                "call": lambda: guest.call("sys.info"),
                "write": lambda: guest.files.write("/x", [b"a", b"b"]),
                "tunnel": lambda: _use_tunnel(guest),
                "attach": lambda: _use_attach(guest),
            }[use]()
        except AgentdError as error:
            assert str(error).isprintable()
        finally:
            guest.close()


def _use_tunnel(guest: Guest) -> None:
    with guest.tunnel(80) as tunnel:
        tunnel.send(b"x")
        while tunnel.recv(5.0):
            pass


def _use_attach(guest: Guest) -> None:
    with guest.attach(7) as running:
        running.wait(5.0)
