"""The descriptors a command starts with: pipes, a PTY, /dev/null, or what the host passed."""

import fcntl
import os
import struct
import termios
from collections.abc import Callable

from agentd.guest.output import STDERR, STDOUT
from agentd.guest.spawn_request import STDIN_STREAM, SpawnError, SpawnRequest


class Stdio:
    """Our ends (``feed``, ``pumped``) and the child's, opened for one request.

    Owns the descriptors that the request names. Call ``close_childs`` once the child has been
    started or not, ``close_ours`` when it has not.
    """

    def __init__(self, request: SpawnRequest, open_null: Callable[[], int]) -> None:
        self.request = request
        self.feed = -1
        self.pumped: dict[int, int] = {}
        self._open_null = open_null
        passed = (request.stdin, request.stdout, request.stderr)
        self._child = [-1 if fd is None or fd < 0 else fd for fd in passed]
        self._to_close = [fd for fd in self._child if fd >= 0]

    def open(self) -> None:
        """Opens them. Raises SpawnError; call ``close_ours`` and ``close_childs`` then, too."""
        try:
            if self.request.pty is not None:
                self._open_pty(*self.request.pty)
            else:
                self._open_pipes()
        except OSError as error:
            stage = "request" if self.request.pty is None else "pty"
            raise SpawnError(stage, error.errno or 0) from None

    def child(self) -> tuple[int, int, int]:
        stdin, stdout, stderr = self._child
        return stdin, stdout, stderr

    def close_childs(self) -> None:
        for fd in self._to_close:
            os.close(fd)
        self._to_close = []

    def close_ours(self) -> None:
        for fd in (self.feed, *self.pumped.values()):
            if fd >= 0:
                os.close(fd)
        self.feed = -1
        self.pumped = {}

    def _open_pty(self, rows: int, columns: int) -> None:
        if self._to_close:
            raise SpawnError("request", 0, "a pty and passed descriptors exclude each other")
        master, slave = os.openpty()
        self._to_close.append(slave)
        self.feed = master
        set_window_size(slave, rows, columns)
        self._child = [slave, slave, slave]
        # One number to write to and one to read from: each has its own watch in the loop.
        self.pumped[STDOUT] = os.dup(master)

    def _open_pipes(self) -> None:
        if self.request.stdin == STDIN_STREAM:
            self._child[0], self.feed = self._pipe(ours=1)
        elif self._child[0] < 0:
            self._child[0] = self._open_null()
        for number in (STDOUT, STDERR):
            if self._child[number] < 0:
                self.pumped[number], self._child[number] = self._pipe(ours=0)

    def _pipe(self, ours: int) -> tuple[int, int]:
        ends = os.pipe2(os.O_CLOEXEC)
        self._to_close.append(ends[1 - ours])
        return ends


def set_window_size(fd: int, rows: int, columns: int) -> None:
    """Sets a terminal's size (TIOCSWINSZ). Raises OSError."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
