"""The agent as PID 1 of a namespace, and with its standard library out of reach."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import agentd
from agentd.guest import wire

SOURCE = os.path.dirname(os.path.dirname(agentd.__file__))
PROGRAM = """
import socket, sys
from agentd.guest import agent
agent.preload()
sys.meta_path.clear()
agent.Ready(pid1=bool(int(sys.argv[2]))).serve(socket.socket(fileno=int(sys.argv[1])))
"""


@pytest.fixture
def start(remote: Any) -> Any:
    """``start(*prefix, pid1=...)``: a client class's connection to an agent run by ``prefix``."""
    children = []
    client_class = type(remote.connect())

    def run(*prefix: str, pid1: bool) -> tuple[Any, Callable[[], int]]:
        listener, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", PROGRAM, str(theirs.fileno()), str(int(pid1))],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": SOURCE},
        )
        theirs.close()
        ours, sent = socket.socketpair()
        socket.send_fds(listener, [b"c"], [sent.fileno()])
        sent.close()
        client = client_class(ours)

        def end() -> int:
            client.close()
            listener.close()
            return process.wait()

        children.append(end)
        return client.shake_hands(), end

    yield run
    for end in children:
        end()


def test_nothing_is_imported_after_preload(start: Any) -> None:
    client, end = start(pid1=False)
    echo = client.request("exec", argv=["echo", "hi"], limits={"open_files": 50, "wall_ms": 60_000})
    assert client.wait(echo)["code"] == 0
    assert client.run("true", pty={"rows": 5, "cols": 5})["code"] == 0
    assert client.run("true", env={"A=B": ""})["code"] == 0
    assert client.run("false")["code"] == 1
    client.wait(client.request("exec", argv=["true"], tag="one", detach=True), "started")
    assert client.wait(client.request("attach", tag="one"))["code"] == 0
    for request in (
        {"op": "sys.info"},
        {"op": "sys.usage"},
        {"op": "fs.stat", "path": "/tmp"},
        {"op": "fs.list", "path": "/tmp"},
        {"op": "fs.read", "path": "/etc/hostname"},
    ):
        answer = client.wait(client.request(**request))
        assert "internal error" not in json.dumps(answer)
    watch = client.request("fs.watch", path="/tmp")
    client.control(watch, op="cancel")
    assert client.wait(watch)["message"] == "cancelled"
    refused = client.wait(client.request("tcp", port=1))
    assert "internal error" not in json.dumps(refused)
    accepted, theirs = socket.socketpair()
    with accepted:
        client.wait(client.request("sys.accept", theirs.fileno()))
        theirs.close()
        accepted.settimeout(120)
        accepted.sendall(b'{"command":"echo","args":["hi"]}\n')
        assert b"aGkK" in accepted.recv(4096)
    assert end() == 0


@pytest.mark.root
def test_as_pid_1(start: Any) -> None:
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs uid 0 and unshare(1)")
    client, end = start("unshare", "--pid", "--fork", "--mount-proc", pid1=True)
    assert client.hello["boot"]["pid1"] is True
    channel = client.request("exec", argv=["sh", "-c", "(setsid sleep 600 & echo $!)"])
    client.wait(channel)
    orphan = int(client.stdout(channel))
    status = client.request("exec", argv=["grep", "PPid", f"/proc/{orphan}/status"])
    client.wait(status)
    assert client.stdout(status) == b"PPid:\t1\n"
    sleeper = client.request("exec", argv=["sleep", "600"])
    client.wait(client.request("signal", signal=int(signal.SIGKILL), target="sandbox"))
    assert client.wait(sleeper)["signal"] == signal.SIGKILL
    # The escaped orphan as well, and PID 1 has reaped it.
    while client.run("test", "-e", f"/proc/{orphan}")["code"] == 0:
        pass
    client.request("exec", argv=["sleep", "600"])
    client.send(wire.GOAWAY, 0, b"{}")
    assert end() == 0
