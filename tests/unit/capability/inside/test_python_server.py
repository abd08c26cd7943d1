"""The socket of a context, against clients that break off, lie or say nothing."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.capability.inside import python_server

SERVER = """
import sys
from agentd.capability.inside import python_server
server = python_server.KernelServer(sys.argv[1])
def run(code):
    print(code, flush=True)
    return {"status": code}
server.serve("test", run)
"""


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    place = str(tmp_path / "s")
    process = subprocess.Popen([sys.executable, "-c", SERVER, place])
    try:
        while process.poll() is None and not os.path.exists(place):
            pass
        yield place
        assert process.poll() is None, "it ended"
    finally:
        process.kill()
        process.wait()


def dial(path: str) -> tuple[socket.socket, Any, list[int]]:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(120)
    while True:
        try:
            made.connect(path)
            break
        except ConnectionRefusedError:  # bound, and not yet listening
            continue
    data, fds, _, _ = socket.recv_fds(made, 4096, 2)
    return made, json.loads(data[4:]), list(fds)


def close(made: socket.socket, fds: list[int]) -> None:
    made.close()
    for fd in fds:
        os.close(fd)


def ask(path: str, code: str) -> tuple[str, bytes]:
    made, hello, fds = dial(path)
    try:
        assert hello == {"kernel": "test"}
        python_server.send(made, {"code": code})
        answer = python_server.receive(made)
        return answer["status"], os.read(fds[0], 1000)
    finally:
        close(made, fds)


def test_code_goes_in_and_its_end_comes_out_beside_its_output(path: str) -> None:
    assert ask(path, "one") == ("one", b"one\n")
    assert ask(path, "two") == ("two", b"two\n")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        struct.pack("!I", 10) + b"short",
        struct.pack("!I", python_server.MAX_FRAME + 1),
        struct.pack("!I", 0xFFFF_FFFF),
        struct.pack("!I", 3) + b"{}}",
        struct.pack("!I", 2) + b"\xff\xff",
    ],
)
def test_a_client_that_lies_or_leaves_does_not_end_it(path: str, data: bytes) -> None:
    made, _, fds = dial(path)
    made.sendall(data)
    close(made, fds)
    assert ask(path, "after") == ("after", b"after\n")


def test_clients_that_were_gone_before_their_turn_are_passed_over(path: str) -> None:
    close(*dial(path)[::2])
    for _ in range(10):
        with socket.socket(socket.AF_UNIX) as made:
            made.connect(path)
    assert ask(path, "after")[0] == "after"


def test_a_frame_is_read_as_it_was_written() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        python_server.send(ours, {"a": "\udc80é"})
        assert python_server.receive(theirs) == {"a": "\udc80é"}
        ours.close()
        assert python_server.receive(theirs) is None


BUSY = """
import sys
from agentd.capability.inside import python_server
server = python_server.KernelServer(sys.argv[1])
def interrupt():
    raise KeyboardInterrupt
server.interrupt = interrupt
def run(code):
    try:
        server.send({"display": "x" * 4_000_000})
    except KeyboardInterrupt:
        return {"status": "interrupted"}
    return {"status": "ok"}
server.serve("test", run)
"""


def test_an_interrupt_waits_until_a_frame_is_whole(tmp_path: Path) -> None:
    """The frame is larger than the socket's buffer: it is on its way until somebody reads it."""
    place = str(tmp_path / "s")
    process = subprocess.Popen([sys.executable, "-c", BUSY, place])
    try:
        while process.poll() is None and not os.path.exists(place):
            pass
        made, _, fds = dial(place)
        python_server.send(made, {"code": ""})
        made.recv(1, socket.MSG_PEEK)
        process.send_signal(signal.SIGINT)
        made.recv(1, socket.MSG_PEEK)
        assert len(python_server.receive(made)["display"]) == 4_000_000
        assert python_server.receive(made) == {"status": "interrupted"}
        close(made, fds)
    finally:
        process.kill()
        process.wait()
