"""A client of QMP, QEMU's control protocol: one JSON object a line, events in between.

https://www.qemu.org/docs/master/interop/qmp-spec.html. What QEMU sends is bounded and checked: a
guest that broke into it could say anything.
"""

import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

from agentd.linux import rights
from agentd.model.errors import BackendLost, SandboxError
from agentd.sandbox.backends.child import unsent

MAX_LINE = 1 << 20
MAX_EVENTS = 64
_READ = 64 << 10


class QmpError(SandboxError):
    """QEMU refused a command; ``kind`` is its error class."""

    def __init__(self, command: str, kind: str, text: str) -> None:
        super().__init__(f"qemu refused {command}", cause=text)
        self.kind = kind


class Qmp:
    """Thread-safe: one command at a time. Owns ``sock``."""

    def __init__(self, sock: socket.socket, timeout: float = 60.0) -> None:
        """Waits for the greeting, at most ``timeout`` seconds. Raises SandboxError."""
        self._sock = sock
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self._number = 0
        if "QMP" not in self._read(time.monotonic() + timeout):
            raise SandboxError("qemu did not greet")
        self.execute("qmp_capabilities")

    def execute(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        fds: Sequence[int] = (),
        timeout: float = 30.0,
    ) -> Any:
        """Returns a command's return value. Raises QmpError, and BackendLost when QEMU is gone."""
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        with self._lock:
            self._number += 1
            message["id"] = self._number
            self._send(json.dumps(message).encode() + b"\n", fds)
            return self._answer(command, time.monotonic() + timeout)

    def wait_event(
        self, names: Collection[str], timeout: float, **fields: object
    ) -> dict[str, Any]:
        """Awaits the next event of one of these names whose data has these fields; returns its
        data.

        Events that came before and were not asked for count, too; those are dropped on the way.
        Raises SandboxError when none came in time.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            while True:
                while self._events:
                    event = self._events.popleft()
                    data = _object(event.get("data"))
                    if event["event"] in names and fields.items() <= data.items():
                        return {**data, "event": event["event"]}
                message = self._read(deadline)
                if "event" in message:
                    self._events.append(message)

    def close(self) -> None:
        self._sock.close()

    def _answer(self, command: str, deadline: float) -> Any:
        while True:
            message = self._read(deadline)
            if "event" in message:
                self._events.append(message)
            elif message.get("id") != self._number:
                continue  # to a command that was given up
            elif "error" in message:
                error = _object(message["error"])
                raise QmpError(command, str(error.get("class")), str(error.get("desc")))
            elif "return" in message:
                return message["return"]

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        try:
            self._sock.settimeout(10.0)
            rights.send(self._sock, data, fds)
        except OSError as error:
            if error.errno in rights.NO_ROOM:
                raise unsent("qemu", error) from error
            raise BackendLost("qemu is gone", cause=str(error)) from error

    def _read(self, deadline: float) -> dict[str, Any]:
        """Read one line, decoded."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_LINE:
                raise SandboxError(f"qemu sent a line of more than {MAX_LINE} bytes")
            self._buffer += self._receive(deadline)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(line)
            if isinstance(message, dict):
                return message
        raise SandboxError("qemu sent what is no QMP message")

    def _receive(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise SandboxError("qemu did not answer in time")
        try:
            self._sock.settimeout(left)
            data = self._sock.recv(_READ)
        except TimeoutError:
            raise SandboxError("qemu did not answer in time") from None
        except OSError as error:
            raise BackendLost("qemu is gone", cause=str(error)) from error
        if not data:
            raise BackendLost("qemu is gone")
        return data


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
