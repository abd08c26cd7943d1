"""The client against a server that says what a script tells it to: QEMU, or what broke into it."""

import array
import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentd.linux import rights
from agentd.model.errors import BackendLost, SandboxError
from agentd.sandbox.backends.child import Starved
from agentd.sandbox.backends.qemu.qmp import MAX_EVENTS, MAX_LINE, Qmp, QmpError

GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}}}}
Answer = Callable[[dict[str, Any]], list[Any]]


class Server:
    """Answers each command with the lines that ``answer`` gives; bytes go as they are."""

    def __init__(self, sock: socket.socket, answer: Answer) -> None:
        self.seen: list[dict[str, Any]] = []
        self.fds: list[int] = []
        self._sock = sock
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        self._say(GREETING)
        buffer = b""
        while True:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(1 << 16, socket.CMSG_SPACE(64))
            except ConnectionResetError:  # it closed without having read all that was said
                data, ancillary = b"", []
            for _, _, raw in ancillary:
                fds = array.array("i")
                fds.frombytes(raw)
                self.fds += fds
            if not data:
                self._sock.close()
                return
            buffer += data
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                command = json.loads(line)
                self.seen.append(command)
                if command["execute"] == "qmp_capabilities":
                    self._say({"return": {}, "id": command["id"]})
                    continue
                for message in self._answer(command):
                    if message is None:
                        self._sock.close()
                        return
                    self._say(message)

    def _say(self, message: Any) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
        try:
            self._sock.sendall(data)
        except OSError:
            return

    def join(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def connect() -> Iterator[Callable[[Answer], tuple[Qmp, Server]]]:
    made: list[tuple[Qmp, Server]] = []

    def make(answer: Answer) -> tuple[Qmp, Server]:
        ours, theirs = socket.socketpair()
        server = Server(theirs, answer)
        made.append((Qmp(ours, 10), server))
        return made[-1]

    yield make
    for qmp, server in made:
        qmp.close()
        server.join()


def _ok(command: dict[str, Any]) -> list[Any]:
    return [{"return": {"echo": command.get("arguments")}, "id": command["id"]}]


Connect = Callable[[Answer], tuple[Qmp, Server]]


def test_a_command_and_its_answer(connect: Connect) -> None:
    qmp, server = connect(_ok)
    assert qmp.execute("device_add", {"id": "x"}) == {"echo": {"id": "x"}}
    assert [seen["execute"] for seen in server.seen] == ["qmp_capabilities", "device_add"]


def test_a_refusal_carries_its_class_and_text(connect: Connect) -> None:
    error = {"class": "DeviceNotFound", "desc": "no such device"}
    qmp, _ = connect(lambda command: [{"error": error, "id": command["id"]}])
    with pytest.raises(QmpError, match="no such device") as caught:
        qmp.execute("device_del")
    assert caught.value.kind == "DeviceNotFound"


def test_events_between_are_kept_for_who_waits(connect: Connect) -> None:
    def answer(command: dict[str, Any]) -> list[Any]:
        return [
            {"event": "DEVICE_DELETED", "data": {"device": "other"}},
            {"event": "STOP"},
            {"event": "DEVICE_DELETED", "data": {"device": "vsock1"}},
            *_ok(command),
        ]

    qmp, _ = connect(answer)
    qmp.execute("device_del")
    found = qmp.wait_event(("DEVICE_DELETED",), 5, device="vsock1")
    assert found == {"event": "DEVICE_DELETED", "device": "vsock1"}


def test_an_event_that_comes_later_is_waited_for(connect: Connect) -> None:
    qmp, _ = connect(lambda command: [*_ok(command), {"event": "RESUME"}])
    qmp.execute("cont")
    assert qmp.wait_event(("RESUME",), 5) == {"event": "RESUME"}


def test_an_event_that_never_comes(connect: Connect) -> None:
    qmp, _ = connect(_ok)
    with pytest.raises(SandboxError, match="in time"):
        qmp.wait_event(("RESUME",), 0.05)


def test_the_answer_to_a_command_that_was_given_up_is_not_the_next_ones(connect: Connect) -> None:
    late: list[dict[str, Any]] = []

    def answer(command: dict[str, Any]) -> list[Any]:
        if command["execute"] == "slow":
            late.append(command)
            return []
        return [*_ok(late.pop()), *_ok(command)]

    qmp, _ = connect(answer)
    with pytest.raises(SandboxError, match="in time"):
        qmp.execute("slow", {"n": 1}, timeout=0.05)
    assert qmp.execute("quick", {"n": 2}) == {"echo": {"n": 2}}


def test_the_end_is_said(connect: Connect) -> None:
    qmp, _ = connect(lambda _: [None])
    with pytest.raises(BackendLost):
        qmp.execute("quit")
    with pytest.raises(BackendLost):
        qmp.execute("again")


@pytest.mark.parametrize("line", [b"no json\n", b"[]\n", b"3\n", b"[" * 100_000 + b"\n", b"\xff\n"])
def test_what_is_no_message_is_an_error(connect: Connect, line: bytes) -> None:
    qmp, _ = connect(lambda _: [line])
    with pytest.raises(SandboxError, match="no QMP message"):
        qmp.execute("query")


def test_a_line_without_an_end_is_bounded(connect: Connect) -> None:
    qmp, _ = connect(lambda _: [b"x" * (MAX_LINE + (1 << 17))])
    with pytest.raises(SandboxError, match=str(MAX_LINE)):
        qmp.execute("query")


def test_a_flood_of_events_is_bounded(connect: Connect) -> None:
    def answer(command: dict[str, Any]) -> list[Any]:
        return [*({"event": "E", "data": {"n": n}} for n in range(500)), *_ok(command)]

    qmp, _ = connect(answer)
    qmp.execute("query")
    assert qmp.wait_event(("E",), 1)["n"] == 500 - MAX_EVENTS


@pytest.mark.parametrize("shape", ["text", 3, None, ["list"]])
def test_errors_of_a_strange_shape_are_refusals_all_the_same(connect: Connect, shape: Any) -> None:
    qmp, _ = connect(lambda command: [{"error": shape, "id": command["id"]}])
    with pytest.raises(QmpError):
        qmp.execute("query")


def test_descriptors_go_with_a_command(connect: Connect) -> None:
    qmp, server = connect(_ok)
    read, write = os.pipe()
    try:
        qmp.execute("add-fd", fds=[read])
    finally:
        os.close(read)
        os.close(write)
    assert len(server.fds) == 1


def test_a_server_that_does_not_greet() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b'{"hello": 1}\n')
        with pytest.raises(SandboxError, match="greet"):
            Qmp(ours, 5)


def test_too_many_descriptors_on_their_way_are_not_its_end(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    qmp, _ = connect(_ok)

    def crowded(*args: Any) -> int:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    with monkeypatch.context() as patched:
        patched.setattr(rights, "send", crowded)
        with pytest.raises(Starved, match="qemu could not be sent a message"):
            qmp.execute("add-fd", fds=[0])
    assert qmp.execute("device_add", {"id": "x"}) == {"echo": {"id": "x"}}
