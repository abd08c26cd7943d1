"""What was on its way as a connection died: answers, signals and sizes that the other side has not
had."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import Daemon, fixture, until

from agentd import Process, Sandbox

daemon = fixture()


class Between:
    """Stands between clients and a daemon. What a connection has dropped it does not carry on."""

    def __init__(self, folder: Path, to: str) -> None:
        self.path = str(folder / "between.sock")
        self._to = to
        self._open: list[socket.socket] = []
        self._ended: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.deaf = False  # drops what those that are open say to the daemon
        self.dropped = 0
        self.holds = 0  # of those to come: how many are not answered before ``answers`` is set
        self.held = 0
        self.answers = threading.Event()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.path)
        self._server.listen(16)
        self._begin(self._serve)

    def cut(self) -> None:
        self.answers.set()
        old, self._open = self._open, []
        self._ended += old
        for each in old:
            _end(each)
        self.deaf = False  # not before: a ping that comes through tells that all has arrived

    def close(self) -> None:
        _end(self._server)
        self.cut()
        for thread in self._threads:
            thread.join()
        for each in (self._server, *self._ended):
            each.close()

    def _begin(self, work: Any, *args: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=args))
        self._threads[-1].start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.socket(socket.AF_UNIX)
                self._open += [near, far]
                far.connect(self._to)
                is_held, self.holds = self.holds > 0, max(0, self.holds - 1)
                self._begin(self._carry, near, far, self._to_daemon)
                self._begin(self._carry, far, near, self._held if is_held else bytes)

    def _carry(self, source: socket.socket, sink: socket.socket, let: Any) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(let(data))
        _end(source)
        _end(sink)

    def _to_daemon(self, data: bytes) -> bytes:
        self.dropped += len(data) if self.deaf else 0
        return b"" if self.deaf else data

    def _held(self, data: bytes) -> bytes:
        self.held += len(data)
        self.answers.wait()
        return data


def _end(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def between(daemon: Daemon, tmp_path: Path) -> Iterator[Between]:
    with closing(Between(tmp_path, daemon.socket)) as made:
        yield made


_UNTIL = "echo up; while :; do sleep .05; done"


@pytest.mark.parametrize(
    ("begin", "send", "said"),
    [
        ({}, lambda p: p.signal(signal.SIGTERM), "TERM"),
        ({"pty": (24, 80)}, lambda p: p.resize(40, 120), "40 120"),
    ],
    ids=["a signal", "a size"],
)
def test_what_a_dead_connection_took_along_comes_by_the_next(
    between: Between, begin: dict[str, Any], send: Any, said: str
) -> None:
    script = f"trap 'echo TERM; exit 0' TERM; trap 'stty size; exit 0' WINCH; {_UNTIL}"
    with Sandbox.create(url=f"unix:{between.path}") as sandbox:
        process: Process = sandbox.start(script, timeout="60s", **begin)
        with process:
            heard = ""
            for chunk in process:
                heard += chunk.text
                if "up" in heard:
                    break
            between.deaf = True
            send(process)
            until(lambda: between.dropped > 0)
            between.cut()
            heard = "".join(chunk.text for chunk in process)
            assert said in heard and process.result.exit_code == 0, process.result.cause


def test_what_is_started_for_nobody_is_ended(daemon: Daemon, between: Between) -> None:
    box = daemon.sandbox()

    def is_over() -> bool:
        (command,) = daemon.ask("GET", f"/v1/sandboxes/{box}/processes").json
        return command["result"] is not None

    between.holds = 1
    argv = [sys.executable, "-m", "agentd", "exec", "--url", f"unix:{between.path}", "-d", box]
    with subprocess.Popen([*argv, "--", "sleep", "600"], stdout=subprocess.PIPE) as process:
        try:
            until(lambda: between.held > 0)
            process.send_signal(signal.SIGINT)
            until(is_over)
            between.answers.set()
            said, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, said) == (130, b"")
