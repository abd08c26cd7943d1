"""The client against a scripted agent."""

import base64
import json
import os
import socket
import threading
import time
from contextlib import suppress

import pytest
from tests.unit.transport.conftest import HELLO

from agentd.guest import wire
from agentd.model import context
from agentd.model.errors import BackendLost, GuestError, InvalidInput, OperationFailed, Refused
from agentd.model.holds import Unwanted
from agentd.model.result import CauseCode
from agentd.model.spec import ExecRequest, Pty
from agentd.transport.guest import Guest

TRUE = ExecRequest(("true",))


def test_a_command_runs_and_its_connection_is_reused(agent):
    def script(peer):
        while True:
            channel, request = peer.request()
            assert request == {"op": "exec", "argv": ["true"]}
            peer.event(channel, "started", pid=7)
            peer.send(wire.STDOUT, channel, b"out")
            peer.send(wire.STDERR, channel, b"err")
            peer.exited(channel, 3, usage={"wall_ms": 1.5, "cpu_ms": 1, "peak_memory_bytes": 9})

    guest = agent(script)
    for _ in range(3):
        end, out, err, truncated = guest.run(TRUE)
        assert (end.exit_code, end.cause.code, out, err, truncated) == (
            3,
            CauseCode.EXITED,
            b"out",
            b"err",
            False,
        )
        assert end.usage.peak_memory_bytes == 9
    assert guest.fake.connections == 1


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("event", ["result", "error"])
def test_what_an_agent_is_told_is_answered_to_nobody(agent, late, event):
    answered = threading.Event()

    def answer(peer, told):
        for byte in wire.encode_json(wire.EVENT, told, {"event": event, "message": "no"}):
            peer.sock.sendall(bytes([byte]))
        answered.set()

    def script(peer):
        for _ in range(3):
            told, request = peer.request()
            assert request == {"op": "sys.lease", "ms": 5}
            if not late:
                answer(peer, told)
            channel, _ = peer.request()
            if late:
                answer(peer, told)
            peer.event(channel, "started", pid=7)
            peer.exited(channel, 3)

    guest = agent(script)
    for _ in range(3):
        guest.tell("sys.lease", ms=5)
        assert late or answered.wait(120)
        answered.clear()
        assert guest.run(TRUE)[0].exit_code == 3
    assert guest.fake.connections == 1


def test_an_agent_that_ends_instead_of_an_answer_is_not_asked_there_again(agent):
    ended = threading.Event()

    def script(peer):
        channel, request = peer.request()
        if request["op"] == "sys.lease":
            peer.sock.shutdown(socket.SHUT_RDWR)
            ended.set()
        else:
            peer.event(channel, "started", pid=7)
            peer.exited(channel, 3)

    guest = agent(script)
    guest.tell("sys.lease", ms=5)
    assert ended.wait(120)
    assert guest.run(TRUE)[0].exit_code == 3
    assert guest.fake.connections == 2


def test_an_agent_answers_what_it_is_told_once(agent):
    def script(peer):
        told, _ = peer.request()
        peer.request()
        for _ in range(2):
            peer.event(told, "result")

    guest = agent(script)
    guest.tell("sys.lease", ms=5)
    with pytest.raises(GuestError, match="channel 1, which is not open"):
        guest.run(TRUE)


def test_what_an_agent_is_told_may_be_answered_in_any_number_of_pieces():
    # Each message is read by itself, and all are there as the connection is looked at.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        theirs.setblocking(False)
        theirs.send(HELLO)
        guest = Guest(lambda: ours, passes_descriptors=False)
        guest.tell("sys.lease", ms=5)
        theirs.send(wire.HEADER.pack(4096, wire.EVENT, 1))
        with suppress(BlockingIOError):
            for _ in range(4095):
                theirs.send(b" ")
        guest.tell("sys.lease", ms=5)
        guest.close()


def test_an_agent_of_ours_is_not_waited_for_to_greet(agent):
    """The greeting and the first request go together; the answers may come in any pieces."""

    def script(peer):
        first = peer.sock.recv(1 << 16)
        assert first.startswith(wire.HELLO) and len(first) > len(wire.HELLO)
        channel = 1
        answers = HELLO + wire.encode_json(wire.EVENT, channel, {"event": "started", "pid": 7})
        for byte in answers:
            peer.sock.sendall(bytes([byte]))
        peer.exited(channel, 3)
        peer.request()
        peer.event(2, "started", pid=8)
        peer.exited(2, 4)

    guest = agent(script, passes_descriptors=True, greeted=False)
    assert guest.run(TRUE)[0].exit_code == 3
    assert guest.run(TRUE)[0].exit_code == 4  # the greeting was the connection's, not the request's


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b'{"exit_code":-1,"error":"Invalid request: x"}\n', "does not speak protocol v2"),
        (b"no json\n", "malformed"),
        (b"x" * (wire.MAX_HELLO_REPLY + 1), "is over"),
        (b"", "closed the connection"),
    ],
)
def test_what_is_no_agent_of_ours_is_found_out_with_the_first_answer(agent, reply, words):
    def script(peer):
        peer.sock.recv(1 << 16)
        peer.sock.sendall(reply)

    with pytest.raises((GuestError, BackendLost)) as found:
        agent(script, passes_descriptors=True, greeted=False).run(TRUE)
    assert words in str(found.value)


def test_every_field_of_a_request_reaches_the_agent(agent):
    seen = []

    def script(peer):
        channel, request = peer.request()
        seen.append(request)
        peer.event(channel, "started", pid=7)
        peer.exited(channel)

    request = ExecRequest(("a", "b"), "/w", {"K": "v"}, True, Pty(10, 20), 1.5, 99, tag="t")
    with agent(script).start(request) as running:
        running.wait()
    assert seen == [
        {
            "op": "exec",
            "argv": ["a", "b"],
            "cwd": "/w",
            "env": {"K": "v"},
            "tag": "t",
            "pty": {"rows": 10, "cols": 20},
            "limits": {"wall_ms": 1500, "output": 99},
        }
    ]


@pytest.mark.parametrize(
    ("number", "stage", "code", "message"),
    [
        (2, "exec", 127, "true: No such file or directory (stage exec)"),
        (13, "exec", 126, "true: Permission denied (stage exec)"),
        (2, "cwd", 127, "/w: No such file or directory (stage cwd)"),
        (0, "user", 126, "true: odd\\x1b[31m (stage user)"),
    ],
)
def test_a_failed_spawn_is_an_exit(agent, number, stage, code, message):
    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "failed", errno=number, stage=stage, message="odd\x1b[31m")

    end = agent(script).run(ExecRequest(("true",), cwd="/w"))[0]
    assert (end.exit_code, end.cause.code, end.cause.message) == (
        code,
        CauseCode.SPAWN_FAILED,
        message,
    )


def test_passed_descriptors_carry_the_streams(agent):
    def script(peer):
        data, fds = peer.sock.recv(1 << 16), peer.take_fds()
        ((_, channel, payload),) = wire.FrameDecoder(wire.FROM_HOST).feed(data)
        assert wire.decode_json(payload)["fds"] == ["stdin", "stdout", "stderr"]
        peer.event(channel, "started", pid=7)
        stdin, out, err = fds
        with os.fdopen(stdin, "rb") as reader:
            got = reader.read()
        os.write(out, got[:100])
        os.write(err, b"%d" % len(got))
        os.close(out)
        os.close(err)
        peer.exited(channel)

    guest = agent(script, passes_descriptors=True)
    end, out, err, _ = guest.run(TRUE, stdin=b"x" * 200_000)
    assert (end.ok, out, err) == (True, b"x" * 100, b"200000")


def test_a_writer_left_behind_does_not_hold_the_end_back(agent):
    held = []

    def script(peer):
        peer.sock.recv(1 << 16)
        fds = peer.take_fds()
        held.extend(fds)
        os.write(fds[0], b"said")
        peer.event(1, "started", pid=7)
        peer.exited(1)

    guest = agent(script, passes_descriptors=True)
    try:
        assert guest.run(TRUE)[:2][1] == b"said"
    finally:
        for fd in held:
            os.close(fd)


@pytest.mark.parametrize("passes", [False, True])
def test_the_host_holds_the_output_limit_itself(agent, passes):
    """Control: the host's own count; the agent here ignores the limit."""
    controls = []

    def script(peer):
        out = -1
        if passes:
            peer.sock.recv(1 << 16)
            fds = peer.take_fds()
            out = fds[0]
            os.close(fds[1])
        else:
            peer.request()
        peer.event(1, "started", pid=7)
        if passes:
            os.write(out, b"y" * 5000)
        else:
            peer.send(wire.STDOUT, 1, b"y" * 5000)
        controls.append(peer.frame())
        if passes:
            os.close(out)
        peer.exited(1, None, signal=9, cause="cancelled")

    guest = agent(script, passes_descriptors=passes)
    end, out, _, truncated = guest.run(ExecRequest(("yes",), output_limit=1000))
    assert (end.cause.code, end.signal, out, truncated) == (
        CauseCode.OUTPUT_LIMIT,
        9,
        b"y" * 1000,
        True,
    )
    assert controls == [(wire.CONTROL, 1, b'{"op":"cancel"}')]


def test_output_of_exactly_the_limit_is_whole(agent):
    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "started", pid=7)
        peer.send(wire.STDOUT, channel, b"y" * 1000)
        peer.exited(channel)

    end, out, _, truncated = agent(script).run(ExecRequest(("yes",), output_limit=1000))
    assert (end.ok, len(out), truncated) == (True, 1000, False)


def test_the_host_ends_what_the_agent_does_not(agent, monkeypatch):
    monkeypatch.setattr("agentd.transport.stream.GRACE", 0.1)

    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "started", pid=7)
        peer.until_closed()

    guest = agent(script)
    end = guest.run(ExecRequest(("sleep",), timeout=0.1))[0]
    assert (end.exit_code, end.cause.code) == (None, CauseCode.TIMEOUT)
    with guest.start(ExecRequest(("sleep",))) as running:
        running.kill()
        assert running.wait().cause.code is CauseCode.CANCELLED
    assert guest.fake.connections == 2


def test_stdin_keeps_to_the_credit(agent):
    got = bytearray()

    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "started", pid=7)
        window = wire.INITIAL_WINDOW
        while True:
            kind, _, payload = peer.frame()
            if kind == wire.STDIN_EOF:
                break
            got.extend(payload)
            window -= len(payload)
            assert window >= 0
            if window == 0:
                window = 100_000
                peer.sock.sendall(wire.encode_credit(channel, window))
        peer.exited(channel)

    data = bytes(range(256)) * 4000
    assert agent(script).run(TRUE, stdin=data)[0].ok
    assert got == data


def test_output_is_granted_as_it_is_taken(agent):
    total = 4 * wire.INITIAL_WINDOW

    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "started", pid=7)
        window, left = wire.INITIAL_WINDOW, total
        while left:
            if not window:
                kind, _, payload = peer.frame()
                assert kind == wire.CREDIT
                window += wire.decode_credit(payload)
            size = min(window, left, 65536)
            peer.send(wire.STDOUT, channel, b"z" * size)
            window -= size
            left -= size
        peer.exited(channel)

    with agent(script).start(TRUE) as running:
        assert sum(len(data) for _, data in running.chunks()) == total
        assert running.wait().ok


def test_step_wakes_for_other_descriptors(agent):
    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "started", pid=7)
        assert peer.frame() == (wire.STDIN, channel, b"typed")
        assert peer.frame() == (wire.CONTROL, channel, b'{"op":"resize","rows":5,"cols":6}')
        peer.send(wire.STDOUT, channel, b"echo")
        peer.exited(channel)

    reader, writer = os.pipe()
    try:
        os.write(writer, b"typed")
        with agent(script).start(ExecRequest(("sh",), stdin=True)) as running:
            ready = []
            while not ready:
                _, ready = running.step(5.0, [reader])
            assert ready == [reader]
            running.write(os.read(reader, 10))
            running.resize(5, 6)
            assert list(running.chunks()) == [("stdout", b"echo")]
            assert running.pid == 7
    finally:
        os.close(reader)
        os.close(writer)


def test_leaving_early_drops_the_connection(agent):
    closed = []

    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "started", pid=7)
        peer.until_closed()
        closed.append(True)

    guest = agent(script)
    with guest.start(TRUE) as running:
        with pytest.raises(TimeoutError):
            running.wait(0.05)
        with pytest.raises(InvalidInput):
            running.write(b"x")
    with pytest.raises(BackendLost):
        running.wait()
    guest.fake.close()
    assert closed == [True]


def test_an_idle_connection_that_spoke_or_closed_is_not_reused(agent):
    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "result", n=1)
        if guest.fake.connections == 1:
            peer.event(channel, "result", n=2)
        # The second one closes after its answer.

    guest = agent(script)
    assert guest.call("sys.ping") == {"n": 1}
    guest.fake._threads[0].join()
    assert guest.call("sys.ping") == {"n": 1}
    guest.fake._threads[1].join()
    assert guest.call("sys.ping") == {"n": 1}
    assert guest.fake.connections == 3


def test_errors_carry_the_errno(agent):
    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "error", errno=13, message="x")

    with pytest.raises(OperationFailed, match=r"sys\.info: Permission denied") as caught:
        agent(script).call("sys.info")
    assert caught.value.errno == 13


def test_attach_follows_and_does_not_cancel(agent):
    def script(peer):
        channel, request = peer.request()
        assert request == {
            "op": "attach",
            "tag": "job",
            "cursor": {"stdout": 5, "stderr": 0},
        }
        peer.event(channel, "attached", pid=9, cursor={"stdout": 6, "stderr": 0})
        peer.send(wire.STDOUT, channel, b"tail")
        assert peer.frame() == (
            wire.CONTROL,
            channel,
            b'{"op":"signal","signal":9,"target":"group"}',
        )
        peer.exited(channel, None, signal=9, cause="signalled")

    with agent(script).attach("job", (5, 0)) as running:
        while not (chunks := running.step()[0]):
            pass
        assert (chunks, running.pid, running.cursor) == ([("stdout", b"tail")], 9, (6, 0))
        running.kill()
        assert running.wait().signal == 9


def test_a_detached_command_gives_its_pid(agent):
    def script(peer):
        channel, request = peer.request()
        assert request["detach"] is True
        peer.event(channel, "started", pid=11)

    assert agent(script).start_detached(TRUE) == 11


def test_a_closed_guest_opens_nothing(agent):
    guest = agent(lambda peer: None)
    guest.close()
    with pytest.raises(BackendLost):
        guest.run(TRUE)
    assert guest.fake.connections == 0


def test_a_request_over_a_frame_is_refused(agent):
    guest = agent(lambda peer: peer.until_closed())
    with pytest.raises(InvalidInput, match="over the limit"):
        guest.run(ExecRequest(("true", "x" * wire.MAX_PAYLOAD)))
    with pytest.raises(InvalidInput, match="empty"):
        guest.run(ExecRequest(()))


V1_REFUSAL = b'{"exit_code":-1,"stdout":"","stderr":"","error":"Invalid request: missing field"}\n'


def test_a_v1_agent_is_served_in_v1(agent):
    def script(peer):
        peer.greet(V1_REFUSAL)
        reader = peer.sock.makefile("rb")
        with reader:
            line = reader.readline()
            assert b'"command":"echo"' in line and b'"stdin":"in"' in line
            peer.sock.sendall(b'{"exit_code":0,"stdout":"aGkK","stderr":"","error":null}\n')
            reader.readline()
            peer.sock.sendall(
                b'{"exit_code":-1,"stdout":"","stderr":"","error":"Failed to spawn process: '
                b'No such file or directory (os error 2)"}\n'
            )
            reader.readline()
            peer.sock.sendall(b'{"exit_code":-1,"stdout":"","stderr":"","error":null}\n')
            reader.read()

    guest = agent(script, greeted=False)
    end, out, err, truncated = guest.run(ExecRequest(("echo", "hi")), stdin=b"in")
    assert (end.exit_code, out, err, truncated) == (0, b"hi\n", b"", False)
    with guest.start(ExecRequest(("nope",))) as running:
        assert running.wait().exit_code == 127
    end = guest.run(ExecRequest(("kill",)))[0]
    assert (end.exit_code, end.signal, end.cause.code) == (None, None, CauseCode.SIGNALLED)
    assert guest.fake.connections == 1
    for use in (
        lambda: guest.files.read("/x"),
        lambda: guest.tunnel(80),
        lambda: guest.attach(1),
        lambda: guest.start(ExecRequest(("sh",), stdin=True)),
    ):
        with pytest.raises(Refused, match="protocol v1"):
            use()


@pytest.mark.parametrize(
    ("error", "cause", "truncated"),
    [
        ("output limit of 67108864 bytes exceeded", CauseCode.OUTPUT_LIMIT, True),
        ("output truncated: what it left behind went on writing", CauseCode.EXITED, True),
        (None, CauseCode.EXITED, False),
    ],
)
def test_what_a_v1_answer_lacks_is_told_apart_from_how_the_command_ended(
    agent, error, cause, truncated
):
    def script(peer):
        peer.greet(V1_REFUSAL)
        peer.sock.recv(1 << 16)
        reply = {"exit_code": 3, "stdout": "aGkK", "stderr": "", "error": error}
        peer.sock.sendall(json.dumps(reply).encode() + b"\n")
        peer.until_closed()

    end, out, _, lost = agent(script, greeted=False).run(TRUE)
    assert (end.exit_code, end.cause.code, out, lost) == (3, cause, b"hi\n", truncated)


def test_a_v1_answer_is_waited_for_no_longer_than_asked(agent, monkeypatch):
    monkeypatch.setattr("agentd.transport.v1.GRACE", 0.05)

    def script(peer):
        peer.greet(V1_REFUSAL)
        peer.until_closed()

    started = time.monotonic()
    end = agent(script, greeted=False).run(ExecRequest(("sleep",), timeout=0.05))[0]
    assert end.cause.code is CauseCode.TIMEOUT
    assert time.monotonic() - started >= 0.1


def test_a_long_v1_answer_is_read_once_there_is_room_for_it(agent):
    out, sent, asked = bytes(range(256)) * (1 << 16), [], []

    def script(peer):
        peer.greet(V1_REFUSAL)
        with peer.sock.makefile("rb") as reader:
            reader.readline()
        line = b'{"exit_code":0,"stdout":"' + base64.b64encode(out) + b'"}\n'
        try:
            for place in range(0, len(line), 1 << 16):
                peer.sock.sendall(line[place : place + (1 << 16)])
                sent.append(place)
        except ConnectionError:
            return
        peer.until_closed()

    def wait(size):
        asked.append((size, len(sent)))

    def refuse(size):
        raise Unwanted("nobody is there")

    guest = agent(script, greeted=False)
    with context.answering(wait):
        end, found, _, _ = guest.run(ExecRequest(("cat",)))
    assert end.ok and found == out
    [(size, rounds)] = asked
    assert size > 2 * len(out) and rounds < len(sent) // 2
    with context.answering(refuse), pytest.raises(Unwanted):
        agent(script, greeted=False).run(ExecRequest(("cat",)))


@pytest.mark.parametrize(
    "reply",
    [b"\n", b"[]\n", b"{}\n", b'{"agentd":3}\n', b"x" * 70_000, b'{"a":' + b"[" * 60_000 + b"\n"],
)
def test_a_greeting_that_is_none_is_a_guest_error(agent, reply):
    def script(peer):
        peer.greet(reply)
        peer.until_closed()

    with pytest.raises(GuestError):
        agent(script, greeted=False).run(TRUE)


def test_a_silent_agent_meets_the_deadline(agent):
    guest = agent(lambda peer: peer.until_closed(), greeted=False, handshake_timeout=0.05)
    with pytest.raises(GuestError, match="in time"):
        guest.run(TRUE)
    guest = agent(lambda peer: peer.until_closed(), answer_timeout=0.05)
    with pytest.raises(GuestError, match="in time"):
        guest.run(TRUE)
    with pytest.raises(GuestError, match="in time"):
        guest.call("sys.ping")


@pytest.mark.parametrize(
    ("number", "option"), [(11, "--pids"), (12, "--memory"), (2, "PATH"), (13, "PATH")]
)
def test_a_spawn_that_a_limit_forbids_blames_the_limit(agent, number, option):
    def script(peer):
        channel, _ = peer.request()
        peer.event(channel, "failed", errno=number, stage="exec", message="odd")

    end = agent(script).run(ExecRequest(("true",)))[0]
    assert end.cause.code == CauseCode.SPAWN_FAILED
    assert option in end.cause.remediation
