"""Who sits at a terminal is told what waits to be allowed, with the command that allows it."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.security.daemons import Daemon, running

from agentd import Sandbox

AGENTD = [sys.executable, "-m", "agentd"]
_DIAL = "import socket; socket.create_connection(('api.example.com', 443), 60).recv(1)"
_TOLD = re.compile(
    rb"agentd (\w+): api\.example\.com:443 waits to be allowed: (agentd approval approve apr-\w+)"
)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    config = """
[sandbox]
networks = ["none", "restricted"]
[egress]
allow = ["public"]
[approvals]
self_approve = true
"""
    with running(config) as made:
        yield made


@pytest.mark.parametrize("command", ["run", "exec"])
def test_the_command_that_is_told_has_it_go_on(daemon: Daemon, command: str) -> None:
    env = {**os.environ, "AGENTD_URL": daemon.url, "NO_COLOR": "1"}
    with Sandbox.create(url=daemon.url, name="asking", net=["ask public"]):
        asked = {"run": ["--net", "ask public"], "exec": ["asking"]}[command]
        job = [*AGENTD, command, *asked, "--", "python3", "-c", _DIAL]
        ours, theirs = pty.openpty()
        with subprocess.Popen(job, stdin=subprocess.DEVNULL, stderr=theirs, env=env) as process:
            os.close(theirs)
            said = b""
            while not (told := _TOLD.search(said)) or not said.endswith(b"\n"):
                said += os.read(ours, 4096)
            assert told[1].decode() == command
            approved = [*AGENTD, *told[2].decode().split()[1:]]
            subprocess.run(approved, env=env, check=True, capture_output=True)
            while True:  # all of it: nobody reads what was in a terminal that is closed
                try:
                    said += os.read(ours, 4096)
                except OSError:  # EIO: it has ended
                    break
        os.close(ours)
    # What it dialled is nobody's, so that it fails: as one that could not be reached.
    assert process.returncode == 1 and said.count(b"waits to be allowed") == 1
    assert b"withdrawn" not in said and b"not allowed" not in said


def test_nothing_is_told_where_nobody_sits_at_a_terminal(daemon: Daemon) -> None:
    env = {**os.environ, "AGENTD_URL": daemon.url}
    job = _DIAL.replace("60", "5")  # seconds: time enough to tell, and nobody decides
    done = subprocess.run(
        [*AGENTD, "run", "--net", "ask public", "--", "python3", "-c", job],
        env=env,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1 and b"waits to be allowed" not in done.stderr
