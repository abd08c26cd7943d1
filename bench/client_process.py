"""A process that passes on its sockets and measures what it is told to."""

import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

SOURCE = str(Path(__file__).resolve().parents[1] / "src")


class ClientProcess:
    def __init__(self, stack: ExitStack, program: str, how: str) -> None:
        """``program`` is told ``how`` and the descriptor at which it sends the sockets that it has
        made; for each line it prints a number."""
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, how, str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[theirs.fileno()],
            env={"PYTHONPATH": SOURCE},
        )
        stack.callback(self._end)
        theirs.close()
        with ours:
            _, fds, _, _ = socket.recv_fds(ours, 10, 8)
        self.sockets = [socket.socket(fileno=fd) for fd in fds]
        self.pid = self._process.pid

    def measure(self, what: str) -> float:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
