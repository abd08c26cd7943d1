"""An agent that can open no more: it says so, whatever it is asked, and has lost none for it."""

import errno
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MOST = 9  # that an operation may need
Opened = Callable[[], set[int]]


@pytest.fixture
def opened(remote: Any) -> Opened:
    return lambda: {int(name) for name in os.listdir(f"/proc/{remote.pid}/fd")}


@pytest.fixture
def scarce(remote: Any, opened: Opened) -> Callable[[], Iterator[int]]:
    """Has the agent open no more, then one, and so on; at the end as many as ever."""

    def each() -> Iterator[int]:
        usual = resource.prlimit(remote.pid, resource.RLIMIT_NOFILE)
        free = [number for number in range(3, 256) if number not in opened()]
        for count in range(MOST):
            resource.prlimit(remote.pid, resource.RLIMIT_NOFILE, (free[count], usual[1]))
            yield count
        resource.prlimit(remote.pid, resource.RLIMIT_NOFILE, usual)

    return each


@pytest.mark.parametrize("more", [{}, {"stdin": "stream"}, {"pty": {}}, {"limits": {"cpu_s": 9}}])
def test_a_command_that_cannot_be_started_has_failed(
    client: Any, scarce: Any, opened: Opened, more: dict[str, Any]
) -> None:
    client.run("true")
    before, told = opened(), []
    for _ in scarce():
        channel = client.request("exec", argv=["true"], **more)
        told.append(client.wait(channel))
    assert told[0]["event"] == "failed" and told[-1]["event"] == "exited"
    assert {end["errno"] for end in told if end["event"] != "exited"} == {errno.EMFILE}
    assert "error" not in {end["event"] for end in told}
    assert opened() == before


@pytest.mark.parametrize("env", [{}, {"a=b": "c"}])
def test_protocol_one_has_its_answer(
    remote: Any, scarce: Any, opened: Opened, env: dict[str, str]
) -> None:
    with remote.stream() as stream:
        stream.settimeout(120)

        def ask() -> str | None:
            stream.sendall(json.dumps({"command": "true", "env": env}).encode() + b"\n")
            return str(json.loads(stream.recv(1 << 16))["error"])

        ask()
        before = opened()
        told = [ask() for _ in scarce()]
        assert told[0] == "Failed to spawn process: Too many open files (os error 24)"
        assert set(told) == {told[0], "None"} and told[-1] == "None"
        assert opened() == before


def test_a_tree_that_cannot_be_removed_now_can_be_later(
    client: Any, scarce: Any, opened: Opened, tmp_path: Path
) -> None:
    before, told = opened(), []
    for _ in scarce():
        (tmp_path / "a" / "b" / "c").mkdir(parents=True, exist_ok=True)
        channel = client.request("fs.remove", path=str(tmp_path / "a"), recursive=True)
        told.append(client.wait(channel))
    assert (told[0]["errno"], told[-1]["event"]) == (errno.EMFILE, "result")
    assert opened() == before


def test_who_comes_meanwhile_is_served_later(tmp_path: Path) -> None:
    place = str(tmp_path / "a")
    argv = [sys.executable, "-m", "agentd.guest.main", "--listen", f"unix:{place}"]
    with (
        subprocess.Popen(argv, stderr=subprocess.PIPE) as agent,
        socket.socket(socket.AF_UNIX) as s,
    ):
        try:
            assert agent.stderr is not None
            assert b"listening" in agent.stderr.readline()
            usual = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (3, usual[1]))
            s.settimeout(120)
            s.connect(place)
            s.sendall(b'{"command":"true"}\n')
            time.sleep(0.5)  # the agent looks
            resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, usual)
            assert b'"error":null' in s.recv(1 << 16)
        finally:
            agent.kill()
