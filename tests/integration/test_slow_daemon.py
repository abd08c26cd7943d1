"""A daemon that takes long to make a sandbox is told on a terminal, once, and nowhere else."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.security.daemons import Daemon, running


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create"], b"to make the sandbox\r\n"),
        (
            ["create", "--isolation", "microvm", "--image", "nosuch"],
            b"has its image built (about 260 MB)",
        ),
        (["run", "--", "true"], b"to make the sandbox\r\n"),
    ],
    ids=["create", "create a machine", "run"],
)
def test_what_is_waited_for_is_said_on_a_terminal(
    daemon: Daemon, words: list[str], said: bytes
) -> None:
    assert daemon.process is not None
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "agentd", words[0], "--url", daemon.url, *words[1:]]
    os.kill(daemon.process.pid, signal.SIGSTOP)  # it takes as long as we like
    try:
        asking = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=theirs)
        os.close(theirs)
        read = b""
        while said not in read:
            read += os.read(ours, 4096)
        asking.kill()
        asking.wait()
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)
        os.close(ours)
    line = f"agentd {words[0]}: waiting for the daemon at {daemon.url}".encode()
    assert read.startswith(line) and read.count(b"waiting for") == 1
