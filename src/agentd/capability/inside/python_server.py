"""The process that keeps one context of ``python.exec``: a socket, two pipes, and an engine.

One client at a time sends one piece of code. It is handed the reading ends of the two pipes that
are this process's stdout and stderr, so that output needs nobody here to pass it on, and what
threads and children write between two calls waits for the next one.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
from typing import Any, Callable  # noqa: UP035  (Python 3.9)

MAX_FRAME = 16 << 20
BACKLOG = 64
# A client that sends nothing would keep the others out.
REQUEST_TIMEOUT = 10.0


class KernelServer:
    """``interrupt`` is called by signal handlers while code runs, and may raise."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pid = os.getpid()
        self.interrupt: Callable[[], None] = lambda: None
        self._connection: Any = None
        self._shielded = self._pending = False
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        out, err = os.pipe(), os.pipe()
        self._readers, self.writers = (out[0], err[0]), (out[1], err[1])
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(BACKLOG)
        self.attach_streams()
        self._set_handlers()
        # A child that outlives us must not seem to be us.
        os.register_at_fork(after_in_child=self._forked)

    def attach_streams(self) -> None:
        """Whatever code before has done to descriptors 0, 1 and 2."""
        for number, fd in enumerate((self._null, *self.writers)):
            os.dup2(fd, number)

    def serve(self, name: str, run: Callable[[str], "dict[str, Any]"]) -> None:
        """Serve for ever. ``run`` gives what is sent when the code has ended."""
        while True:
            with contextlib.suppress(OSError, ValueError, KeyboardInterrupt, struct.error):
                connection, _ = self._listener.accept()
                with connection:
                    self._talk(connection, name, run)

    def send(self, message: "dict[str, Any]") -> None:
        """Send to the client of now. An interrupt waits until the frame is whole."""
        if self._connection is None:
            return
        self._shielded = True
        try:
            send(self._connection, message)
        finally:
            self._shielded = False
            pending, self._pending = self._pending, False
        if pending:
            self.interrupt()

    def _talk(
        self, connection: socket.socket, name: str, run: Callable[[str], "dict[str, Any]"]
    ) -> None:
        connection.settimeout(REQUEST_TIMEOUT)
        hello = frame({"kernel": name})
        socket.send_fds(connection, [hello], list(self._readers), socket.MSG_NOSIGNAL)
        request = receive(connection)
        if request is None:
            return
        connection.settimeout(None)
        self._connection = connection
        try:
            self._watch(connection)
            self.attach_streams()
            answer = run(str(request["code"]))
            self._pending = False
            # Else the next connection would be descriptor 1 where the code has closed that.
            self.attach_streams()
            send(connection, answer)
        finally:
            self._connection = None

    def _watch(self, connection: socket.socket) -> None:
        """The kernel tells when the client is gone: nobody wants the end of the code then."""
        self._set_handlers()
        fcntl.fcntl(connection, fcntl.F_SETOWN, self.pid)
        flags = fcntl.fcntl(connection, fcntl.F_GETFL)
        fcntl.fcntl(connection, fcntl.F_SETFL, flags | os.O_ASYNC)
        if _is_gone(connection):
            raise ConnectionError("the client is gone")

    def _set_handlers(self) -> None:
        for number in (signal.SIGINT, signal.SIGIO):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        if os.getpid() != self.pid:
            raise KeyboardInterrupt
        if self._connection is None:
            return
        if number == signal.SIGIO and not _is_gone(self._connection):
            return
        if self._shielded:
            self._pending = True
        else:
            self.interrupt()

    def _forked(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.close()
            if self._connection is not None:
                self._connection.close()
        self._connection = None


def frame(message: "dict[str, Any]") -> bytes:
    data = json.dumps(message).encode()
    return struct.pack("!I", len(data)) + data


def send(connection: socket.socket, message: "dict[str, Any]") -> None:
    connection.sendall(frame(message), socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> Any:
    """Receive a frame; None at the end. Raises OSError, ValueError."""
    head = _exactly(connection, 4)
    if not head:
        return None
    (size,) = struct.unpack("!I", head)
    if size > MAX_FRAME:
        raise ValueError("the frame is too large")
    return json.loads(_exactly(connection, size))


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)


def _is_gone(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
