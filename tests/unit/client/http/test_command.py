"""A process over WebSocket, against a server that loses connections as the test says."""

import json
import struct
import threading
from contextlib import suppress
from urllib.parse import parse_qsl, urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import unix_serve

from agentd.client.http import address, command
from agentd.client.http.client import HttpClient
from agentd.client.http.command import RemoteCommand
from agentd.client.http.errors import Unreachable
from agentd.client.sandbox import Process
from agentd.model.errors import AgentdError, InvalidInput, NotFound, SandboxError
from agentd.model.result import CauseCode
from agentd.model.running import execute

STREAMS = {"stdout": 1, "stderr": 2, "pty": 3}


def output(stream, at, data):
    return struct.pack(">BQ", STREAMS[stream], at) + data


def ended(**fields):
    result = {
        "request_id": "r",
        "status": "ok",
        "exit_code": 0,
        "signal": None,
        "cause": {"code": "exited", "message": "exited with code 0"},
        "stdout": "",
        "stderr": "",
        "encoding": "utf-8",
        "truncated": False,
        "usage": {},
        "timing": {},
        "sandbox": {"id": "s", "backend": "linux", "level": "namespace"},
        "enforcement": {},
    }
    return json.dumps({"event": "exit", "result": result | fields})


class Sockets:
    """``visits``: what is done with one connection after the other, the last with all others."""

    def __init__(self):
        self.visits = []
        self.queries = []

    def handle(self, socket):
        self.queries.append(dict(parse_qsl(urlsplit(socket.request.path).query)))
        visit = self.visits.pop(0) if len(self.visits) > 1 else self.visits[0]
        with suppress(ConnectionClosed):
            visit(socket)


@pytest.fixture
def sockets(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "DELAYS", (0.0, 0.01))
    made = Sockets()
    made.path = str(tmp_path / "ws")
    with unix_serve(made.handle, made.path, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield made
        server.shutdown()
        thread.join()


@pytest.fixture
def attach(sockets):
    clients, commands = [], []

    def make(**options):
        client = HttpClient(address.parse(f"unix:{sockets.path}"))
        clients.append(client)
        found = RemoteCommand(client, "/v1/sandboxes/s/processes/p", "p", **options)
        commands.append(found)
        return found

    yield make
    for found in commands:
        found.detach()
    for client in clients:
        client.close()


def say(*messages, cut=False):
    """Sent at once; then the connection goes on until the client closes it, or ends abruptly."""

    def visit(socket):
        for message in messages:
            socket.send(message)
        if cut:
            socket.socket.shutdown(2)
        else:
            for _ in socket:
                pass

    return visit


def test_output_in_order_and_the_end(sockets, attach):
    sockets.visits = [
        say(
            json.dumps({"event": "started", "process": process(pid=42)}),
            output("stdout", 0, b"one"),
            output("stderr", 0, b"err"),
            output("stdout", 3, b"two"),
            ended(exit_code=3, status="failed"),
        )
    ]
    running = attach()
    assert list(running.chunks()) == [("stdout", b"one"), ("stderr", b"err"), ("stdout", b"two")]
    assert running.pid == 42
    assert running.cursors == {"stdout": 6, "stderr": 3, "pty": 0}
    result = running.finish()
    assert (result.exit_code, result.status, result.stdout) == (3, "failed", b"")


def process(**fields):
    return {
        "id": "p",
        "sandbox": "s",
        "argv": ["x"],
        "tag": None,
        "pid": None,
        "state": "running",
        "started": 1.0,
        "output": {},
    } | fields


def test_captured_output_is_in_the_result(sockets, attach):
    sockets.visits = [say(output("stdout", 0, b"a"), output("stderr", 0, b"b"), ended())]
    result = attach(capture=True).finish()
    assert (result.stdout, result.stderr, result.truncated) == (b"a", b"b", False)


def test_captured_output_is_bounded(sockets, attach, monkeypatch):
    monkeypatch.setattr(command, "MAX_CAPTURE", 4)
    sockets.visits = [say(output("stdout", 0, b"abc"), output("stdout", 3, b"def"), ended())]
    result = attach(capture=True).finish()
    assert (result.stdout, result.truncated) == (b"abcd", True)


def test_a_terminals_output_is_standard_output(sockets, attach):
    sockets.visits = [say(output("pty", 0, b"$ "), cut=True), say(output("pty", 2, b"x"), ended())]
    assert list(attach(pty=True).chunks()) == [("stdout", b"$ "), ("stdout", b"x")]
    assert sockets.queries == [{}, {"pty": "2"}]


def test_after_a_lost_connection_it_goes_on_from_where_it_was(sockets, attach):
    sockets.visits = [
        say(output("stdout", 0, b"abc"), output("stderr", 0, b"!"), cut=True),
        say(cut=True),
        say(output("stdout", 1, b"bcde"), ended()),  # some of it once more
    ]
    running = attach()
    assert b"".join(d for name, d in running.chunks() if name == "stdout") == b"abcde"
    assert sockets.queries == [{}, {"stdout": "3", "stderr": "1"}, {"stdout": "3", "stderr": "1"}]
    assert running.lost == {}


def test_it_can_begin_anywhere(sockets, attach):
    sockets.visits = [say(output("stdout", 100, b"x"), ended())]
    assert list(attach(cursors={"stdout": 100}).chunks()) == [("stdout", b"x")]
    # A few bytes ahead of that come along, for a character that may have begun in them.
    assert sockets.queries == [{"stdout": "97"}]


def test_a_character_that_began_ahead_of_where_it_is_taken_up_is_whole(sockets, attach):
    sockets.visits = [
        say(output("stdout", 4, b"b\xe2\x82"), output("stdout", 7, b"\xac!"), ended()),
        say(output("stderr", 2, b"\x82"), output("stderr", 3, b"\xacx\xe2"), cut=True),
        say(output("stderr", 6, b"\x82"), ended()),
    ]
    first = list(Process(attach(cursors={"stdout": 7})))
    assert [(chunk.data, chunk.text) for chunk in first] == [(b"\xac!", "\N{EURO SIGN}!")]
    again = list(Process(attach(cursors={"stderr": 3})))
    assert b"".join(chunk.data for chunk in again) == b"\xacx\xe2\x82"
    assert "".join(chunk.text for chunk in again) == "\ufffdx\ufffd"
    assert sockets.queries == [{"stdout": "4"}, {"stderr": "0"}, {"stderr": "6"}]


def test_no_character_goes_over_what_is_lost(sockets, attach):
    lost = json.dumps({"event": "lost", "stream": "stdout", "from": 1, "to": 90})
    pieces = output("stdout", 0, b"\xe2"), lost, output("stdout", 90, b"\x82\xac")
    sockets.visits = [say(*pieces, ended())]
    assert "".join(map(str, Process(attach()))) == "\ufffd\ufffd\ufffd"


def test_what_is_gone_is_counted(sockets, attach):
    lost = json.dumps({"event": "lost", "stream": "stdout", "from": 0, "to": 90})
    sockets.visits = [say(lost, output("stdout", 90, b"x"), output("stderr", 7, b"y"), ended())]
    running = attach(capture=True)
    result = running.finish()
    assert running.lost == {"stdout": 90, "stderr": 7}
    assert result.truncated


def test_a_server_that_only_hangs_up_is_given_up(sockets, attach):
    sockets.visits = [say(cut=True)]
    running = attach()
    with pytest.raises(Unreachable, match="process p may still run"):
        running.finish()


def test_stdin_controls_and_their_order(sockets, attach):
    heard = []

    def visit(socket):
        for message in socket:
            heard.append(message)
            if isinstance(message, str) and json.loads(message)["op"] == "eof":
                socket.send(ended())

    sockets.visits = [visit]
    running = attach(stdin=True)
    running.write(b"a" * 100_000)
    running.resize(24, 80)
    running.signal(10)
    running.close_stdin()
    running.close_stdin()
    assert running.finish().exit_code == 0
    data = b"".join(message for message in heard if isinstance(message, bytes))
    assert data == b"a" * 100_000
    assert [json.loads(message) for message in heard if isinstance(message, str)] == [
        {"op": "resize", "rows": 24, "cols": 80},
        {"op": "signal", "signal": 10},
        {"op": "eof"},
    ]
    running.write(b"too late, and no matter") if running._stdin_open else None
    running.signal(9)


def test_stdin_that_was_not_asked_for(sockets, attach):
    sockets.visits = [say(ended())]
    with pytest.raises(InvalidInput, match="stdin is not open"):
        attach().write(b"x")


def test_much_stdin_and_much_output_at_once_do_not_lock_up(sockets, attach):
    size = 8 << 20

    def echo(socket):
        at = 0
        for message in socket:
            if isinstance(message, bytes):
                socket.send(output("stdout", at, message))
                at += len(message)
            else:
                socket.send(ended())

    sockets.visits = [echo]
    result = execute(attach(stdin=True, capture=True), b"x" * size)
    assert len(result.stdout) == size


def test_stdin_that_may_be_lost_is_never_passed_over(sockets, attach):
    gone = threading.Event()

    def deaf(socket):
        gone.wait(120)  # it answers no ping: nothing is known to have arrived
        socket.socket.shutdown(2)

    sockets.visits = [deaf, say(ended())]
    running = attach(stdin=True)
    # More than the socket takes at once, so that the answer to the ping cannot have come.
    running._give(command.BINARY, b"x" * (1 << 20))
    running._socket._frames.feed = lambda data: []  # and none that comes is heard
    gone.set()
    with pytest.raises(Unreachable, match="while stdin was on its way"):
        running.finish()


def test_stdin_that_has_arrived_does_not_hinder_coming_back(sockets, attach):
    def take(socket):
        assert socket.recv() == b"x"
        socket.send(output("stdout", 0, b"got"))
        # Its answer to the ping has left by the time that a pong to ours is here.
        socket.ping().wait(120)
        socket.socket.shutdown(2)

    sockets.visits = [take, say(output("stdout", 3, b"!"), ended())]
    running = attach(stdin=True)
    running.write(b"x")
    assert b"".join(data for _, data in running.chunks()) == b"got!"


def test_a_terminal_comes_back_whatever_was_typed(sockets, attach):
    def drop(socket):
        socket.recv()
        socket.socket.shutdown(2)

    sockets.visits = [drop, say(output("pty", 0, b"$ "), ended())]
    running = attach(pty=True)
    running.write(b"ls\n")
    assert list(running.chunks()) == [("stdout", b"$ ")]


def test_kill_is_a_cancellation(sockets, attach):
    def visit(socket):
        assert json.loads(socket.recv()) == {"op": "signal", "signal": 9}
        killed = {"code": "signalled", "message": "killed by signal 9"}
        socket.send(ended(exit_code=None, signal=9, status="failed", cause=killed))

    sockets.visits = [visit, visit]
    running = attach()
    running.kill()
    assert running.finish().cause.code is CauseCode.CANCELLED


def test_a_kill_by_somebody_else_is_not(sockets, attach):
    killed = {"code": "signalled", "message": "killed by signal 9"}
    sockets.visits = [say(ended(exit_code=None, signal=9, status="failed", cause=killed))]
    assert attach().finish().cause.code is CauseCode.SIGNALLED


def test_an_end_that_nobody_saw(sockets, attach):
    sockets.visits = [say('{"event": "exit", "result": null}')]
    with pytest.raises(SandboxError, match="how process p ended is not known"):
        attach().finish()


def refusal(code):
    fields = {"code": code, "message": "no", "cause": "", "remediation": ""}
    return json.dumps({"event": "error", "error": fields})


def test_a_refused_operation_is_an_error(sockets, attach):
    sockets.visits = [say(refusal("invalid_input"))]
    with pytest.raises(InvalidInput, match="no"):
        attach().finish()


def test_input_for_a_command_that_has_ended_is_none(sockets, attach):
    sockets.visits = [say(refusal("conflict"), ended())]
    assert attach().finish().exit_code == 0


@pytest.mark.parametrize("message", [b"\x01short", b"\x09" + bytes(8), "no json", '{"event": 5}'])
def test_what_breaks_the_protocol_is_an_error(sockets, attach, message):
    sockets.visits = [say(message)]
    with pytest.raises(AgentdError, match="broke the protocol"):
        attach().finish()


def test_another_descriptor_wakes_a_step(sockets, attach):
    import os

    sockets.visits = [say()]
    running = attach()
    read_end, write_end = os.pipe()
    os.write(write_end, b"x")
    assert running.step(None, [read_end]) == ([], [read_end])
    assert running.step(0.01) == ([], [])
    os.close(read_end)
    os.close(write_end)


def test_another_thread_may_write_while_one_waits(sockets, attach):
    def echo(socket):
        socket.send(output("stdout", 0, socket.recv()))
        socket.send(ended())

    sockets.visits = [echo]
    running = attach(stdin=True)
    found = []
    reader = threading.Thread(target=lambda: found.extend(running.chunks()))
    reader.start()
    running.write(b"hello")
    reader.join(120)
    assert found == [("stdout", b"hello")]


def test_a_refused_handshake_says_why(daemon, client):
    daemon.answers = [(404, {}, b'{"code": "not_found", "message": "no process"}')]
    with pytest.raises(NotFound, match="no process"):
        RemoteCommand(client, "/v1/x", "p")


def test_an_answer_without_the_right_key_is_none(daemon, client, monkeypatch):
    monkeypatch.setattr(command, "DELAYS", (0.0,))

    def forged(handler):
        handler.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: AAAA\r\n\r\n"
        )

    daemon.answers = [forged]
    with pytest.raises(Unreachable, match="does not belong"):
        RemoteCommand(client, "/v1/x", "p")


def test_a_kill_that_a_broken_connection_took_along_goes_again(sockets, attach):
    came = []

    def breaks(socket):
        came.append(json.loads(socket.recv()))
        socket.socket.shutdown(2)

    def holds(socket):
        with suppress(TimeoutError):
            came.append(json.loads(socket.recv(timeout=120)))
        say(ended(signal=9, exit_code=None))(socket)

    sockets.visits = [breaks, holds]
    running = attach()
    running.kill()
    assert running.finish().signal == 9
    assert came == [{"op": "signal", "signal": 9}] * 2


def test_a_signal_that_has_arrived_is_not_sent_again_though_nobody_has_read_so(sockets, attach):
    gone, heard = threading.Event(), []

    def takes(socket):
        socket.recv()
        socket.ping()
        socket.recv()  # the answer to the ping between these two has left
        socket.socket.shutdown(2)
        gone.set()

    def ends(socket):
        for message in socket:
            heard.append(json.loads(message)["signal"])
            if heard[-1] == 1:
                socket.send(ended())

    sockets.visits = [takes, ends]
    running = attach()
    running.signal(10)
    running.signal(12)
    assert gone.wait(120)
    running.signal(1)
    assert running.finish().exit_code == 0
    assert heard == [12, 1]


def test_a_signal_for_what_ended_as_the_connection_broke_is_none(sockets, attach):
    gone = threading.Event()

    def ends(socket):
        socket.send(ended())
        socket.socket.shutdown(2)
        gone.set()

    sockets.visits = [ends]
    running = attach()
    assert gone.wait(120)
    running.signal(10)
    assert running.finish().exit_code == 0
    assert len(sockets.queries) == 1


def test_close_kills_what_runs(daemon, sockets, attach):
    # The kill is a request of its own: here it finds no such path, and nothing hangs on it.
    sockets.visits = [say()]
    running = attach()
    asked = []
    running._client.call = lambda *args, **how: asked.append((*args, how["ends"]))
    running.close()
    running.close()
    path = "/v1/sandboxes/s/processes/p/signal"
    assert asked == [("POST", path, {"signal": 9}, True)]
    with pytest.raises(SandboxError, match="was let go"):
        running.step()
