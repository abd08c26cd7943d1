"""Ctrl-C while nobody answers where the daemon is said to be."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from agentd.client.cli import exec as exec_
from agentd.client.cli import run
from agentd.client.http import connection

ID = "sbx-abcdefghijkl"


@pytest.fixture
def silent(request: pytest.FixtureRequest) -> Iterator[str]:
    """Its address: no connection to it is made any more, or one is and nothing is said."""
    with socket.create_server(("127.0.0.1", 0), backlog=0 if request.param == "http" else 8) as it:
        port = it.getsockname()[1]
        waiting = [socket.socket() for _ in range(4 if request.param == "http" else 0)]
        for each in waiting:  # in front of whom a fifth has no place
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        yield f"{request.param}://127.0.0.1:{port}"
        for each in waiting:
            each.close()


def states(port: int) -> list[str]:
    """Of our connections to it."""
    with open(f"/proc/{os.getpid()}/net/tcp") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    return [row[3] for row in rows if row[2].endswith(f":{port:04X}")]


def interrupt_who_dials(url: str, over: threading.Event) -> None:
    port, before = int(url.rpartition(":")[2]), 0 if url.startswith("https") else 4
    while not over.is_set() and len(states(port)) <= before:
        time.sleep(0.02)
    time.sleep(0.2)  # it waits by now, or is about to: either is to end
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("silent", ["http", "https"], indirect=True)
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (exec_.main, ["-d", ID, "--", "true"]),
        (exec_.main, [ID, "--", "true"]),
        (run.main, ["--", "true"]),
    ],
    ids=["exec -d", "exec", "run"],
)
def test_who_waits_for_a_connection_can_be_interrupted(
    silent: str, command: object, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 3600.0)
    over = threading.Event()
    thread = threading.Thread(target=interrupt_who_dials, args=(silent, over))
    thread.start()
    try:
        assert command(["--url", silent, *words]) == 130  # type: ignore[operator]
    finally:
        over.set()
        thread.join()
