"""Code in a kernel from its start to its end: what comes of it, and its time.

What comes meanwhile goes to stderr, a JSON object a line: ``{"kind", "data"}``, data as base64.
"""

import base64
import json
import os
import selectors
import signal
import socket
import struct
import time
from typing import Any, Callable  # noqa: UP035  (Python 3.9)

MAX_FRAME = 16 << 20
MAX_DISPLAYS = 64
MAX_DISPLAY_BYTES = 8 << 20
PIECE = 48 << 10
GRACE = 1.0  # seconds that code may ignore an interrupt


class Run:
    """``kernel`` is a python_client.Kernel. It is interrupted at ``deadline``, then killed."""

    def __init__(self, kernel: Any, streams: "list[int]", most: int, deadline: float) -> None:
        self._kernel = kernel
        self._streams = {streams[0]: "stdout", streams[1]: "stderr"}
        self._room = {"stdout": most, "stderr": most, "display": MAX_DISPLAY_BYTES}
        self._displays = 0
        self._deadline = deadline
        self._received = bytearray()
        self._stages: list[tuple[float, Callable[[], None]]] = [
            (deadline, lambda: kernel.signal(signal.SIGINT)),
            (deadline + GRACE, lambda: kernel.signal(signal.SIGINT)),
            (deadline + 2 * GRACE, kernel.kill),
        ]
        self.truncated = False

    @property
    def timed_out(self) -> bool:
        return len(self._stages) < 3

    def until_done(self) -> "dict[str, Any]":
        """The kernel's last word. Raises OSError, ValueError."""
        with selectors.DefaultSelector() as selector:
            connection: socket.socket = self._kernel.connection
            selector.register(connection, selectors.EVENT_READ)
            for fd in (self._kernel.pidfd, *self._streams):
                selector.register(fd, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(self._next_stage()):
                    if key.fd in self._streams:
                        self._copy(key.fd)
                    elif key.fileobj is connection:
                        done = self._receive(connection)
                        if done is not None:
                            return done
                    else:
                        raise ConnectionError("the kernel ended")

    def drain(self) -> None:
        """Return what was written before the end; later output goes to the next call."""
        for fd in self._streams:
            for _ in range(64):
                if not self._copy(fd):
                    break

    def _next_stage(self) -> "float | None":
        while self._stages:
            left = self._stages[0][0] - time.monotonic()
            if left > 0:
                return left
            self._stages.pop(0)[1]()
        return None

    def _copy(self, fd: int) -> bool:
        try:
            data = os.read(fd, PIECE)
        except BlockingIOError:
            return False
        if data:
            self._tell(self._streams[fd], data)
        return bool(data)

    def _tell(self, kind: str, data: bytes) -> None:
        kept = data[: self._room[kind]]
        self._room[kind] -= len(kept)
        self.truncated = self.truncated or len(kept) < len(data)
        if kept:
            tell(kind, kept)

    def _receive(self, connection: socket.socket) -> "dict[str, Any] | None":
        data = connection.recv(1 << 16)
        if not data:
            raise ConnectionError("the kernel ended")
        self._received += data
        while len(self._received) >= 4:
            (size,) = struct.unpack("!I", self._received[:4])
            if size > MAX_FRAME:
                raise ConnectionError("the kernel ended")
            if len(self._received) < 4 + size:
                return None
            message = json.loads(self._received[4 : 4 + size])
            del self._received[: 4 + size]
            if "display" not in message:
                return dict(message)
            self._show(json.dumps(message["display"]).encode())
        return None

    def _show(self, data: bytes) -> None:
        self._displays += 1
        if self._displays > MAX_DISPLAYS or len(data) > self._room["display"]:
            self.truncated = True
        else:
            self._tell("display", data)


def tell(kind: str, data: bytes) -> None:
    line = json.dumps({"kind": kind, "data": base64.b64encode(data).decode()}) + "\n"
    write(2, line.encode())


def write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
