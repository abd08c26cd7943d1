"""Ctrl-C while nobody answers where the daemon is said to be, or while a daemon hangs."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NoReturn

import pytest

from agentd.client.cli import exec as exec_
from agentd.client.cli import interrupts, ls, run
from agentd.client.http import connection, killing

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
    if not over.wait(0.2):  # it waits by now, or is about to: either is to end
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


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (exec_.main, ["-d", ID, "--", "true"]),
        (exec_.main, [ID, "--", "true"]),
        (run.main, ["--", "true"]),
        (ls.main, []),
    ],
    ids=["exec -d", "exec", "run", "ls"],
)
def test_who_waits_for_a_name_can_be_interrupted(
    command: Callable[[list[str]], int], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, over, found = threading.Event(), threading.Event(), list[str]()

    def look_up(host: str, port: int, *, flags: int = 0, **more: object) -> NoReturn:
        if not flags & socket.AI_NUMERICHOST:
            asked.set()
            over.wait(120)
            found.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "it does not answer")

    def interrupt() -> None:
        asked.wait()
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    finger = threading.Thread(target=interrupt)
    finger.start()
    try:
        with suppress(KeyboardInterrupt):  # which ``main`` makes that of all others
            assert command(["--url", "http://daemon.internal:8080", *words]) == 130
        finger.join()
        assert found == []
    finally:
        over.set()


class Hanging(BaseHTTPRequestHandler):
    """A daemon that begins a command, and then says no more of it."""

    takes_kills = False
    asked, over = threading.Event(), threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if not (self.takes_kills or self.path.endswith("/exec")):
            self.over.wait()
        begun = {"id": "prc-0123456789abcdef", "sandbox": ID, "argv": ["true"], "tag": None}
        begun |= {"pid": 1, "state": "running", "started": 1.0, "output": {}}
        said = json.dumps(begun).encode() if self.path.endswith("/exec") else b""
        self.send_response(200 if said else 204)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def do_GET(self) -> None:
        self.asked.set()
        self.over.wait()

    def log_message(self, *args: object) -> None:
        pass


class Heard(interrupts.Interrupts):
    count = 0

    def _on_end(self, number: int, frame: object) -> None:
        Heard.count += 1
        super()._on_end(number, None)


def press(times: int) -> None:
    Hanging.asked.wait()
    for before in range(times):
        if not Hanging.over.is_set():  # else it would be pytest that is interrupted
            os.kill(os.getpid(), signal.SIGINT)
        while Heard.count == before and not Hanging.over.is_set():
            time.sleep(0.02)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_waits_no_longer_for_a_daemon_that_hangs(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one does not, either, for the kill that it does not take."""
    for event in (Hanging.asked, Hanging.over):
        event.clear()
    monkeypatch.setattr(Heard, "count", 0)
    monkeypatch.setattr(Hanging, "takes_kills", times == 1)
    monkeypatch.setattr(killing, "KILL_SECONDS", 3600.0)
    monkeypatch.setattr(interrupts, "AGAIN_SECONDS", 0.0 if times == 2 else 3600.0)
    monkeypatch.setattr(exec_, "Interrupts", Heard)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as server:
        server.daemon_threads = True
        serving = threading.Thread(target=server.serve_forever, args=(0.02,))
        finger = threading.Thread(target=press, args=(times,))
        for thread in (serving, finger):
            thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            assert exec_.main(["--url", url, ID, "--", "true"]) == 130
        finally:
            Hanging.over.set()
            Hanging.asked.set()
            server.shutdown()
            serving.join()
            finger.join()
