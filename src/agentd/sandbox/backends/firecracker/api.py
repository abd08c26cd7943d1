"""Firecracker's API: HTTP/1.1 over a unix socket, one request at a time.

Small on purpose: http.client buffers, follows a server's wishes and has no deadline for a whole
answer, and the server is the process that a guest may have taken over. So an answer is bounded in
bytes and time, and nothing in it is trusted but its status and its one error field. Bodies go out
with Content-Length, for the server reads no other kind, and within its limit.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from agentd.model.errors import BackendLost, InvalidInput, SandboxError
from agentd.transport.text import safe_text

MAX_BODY = 51_200  # HTTP_MAX_PAYLOAD_SIZE, src/vmm/src/lib.rs
MAX_LINE = 1_024  # of a request's head; longer ones are refused
_MAX_HEAD = 8 << 10
_MAX_ANSWER = 1 << 20  # GET /vm/config is the longest
_RECEIVE = 64 << 10
_FAULT_CHARACTERS = 500
_REFUSED = range(400, 500)


class ApiError(SandboxError):
    """Firecracker refused a request; ``status`` is HTTP's, ``fault`` its own words."""

    def __init__(self, what: str, status: int, fault: str) -> None:
        super().__init__(
            f"firecracker refused {what}",
            cause=fault or f"HTTP status {status}",
            remediation="" if status in _REFUSED else "see the end of its log",
        )
        self.status = status
        self.fault = fault


class ApiClient:
    """A client with one connection, kept: the server takes ten and serves one. Thread-safe."""

    def __init__(self, stream: socket.socket) -> None:
        """``stream`` is connected, and ours from now on."""
        self._stream: socket.socket | None = stream
        self._lock = threading.Lock()
        self._rest = b""

    def close(self) -> None:
        with self._lock:
            self._drop()

    def request(
        self, method: str, path: str, body: Mapping[str, object] | None, seconds: float
    ) -> Any:
        """Returns the decoded answer, None where there is none.

        Raises InvalidInput for what the server would not even read, ApiError for a refusal, and
        BackendLost when the connection ended or no answer came within ``seconds``.
        """
        request = encode(method, path, body)
        what = f"{method} {path}"
        with self._lock:
            if self._stream is None:
                raise BackendLost("the connection to firecracker is closed")
            try:
                deadline = time.monotonic() + seconds
                self._write(self._stream, request, deadline)
                status, payload = self._answer(self._stream, deadline)
            except TimeoutError as error:
                self._drop()  # an answer that comes later would be taken for the next one's
                raise BackendLost(
                    f"firecracker gave no answer to {what}", cause=f"within {seconds:g} s"
                ) from error
            except (OSError, ValueError) as error:
                self._drop()
                raise BackendLost(f"firecracker broke off at {what}", cause=str(error)) from error
        return _outcome(what, status, payload)

    def _write(self, stream: socket.socket, request: bytes, deadline: float) -> None:
        _limit(stream, deadline)
        stream.sendall(request)

    def _answer(self, stream: socket.socket, deadline: float) -> tuple[int, bytes]:
        """Raises OSError, ValueError for what is no HTTP."""
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > _MAX_HEAD:
                raise ValueError("the head of its answer has no end")
            data += _receive(stream, deadline)
        status, length = _head(data[:end])
        data = data[end + 4 :]
        while len(data) < length:
            data += _receive(stream, deadline)
        self._rest = data[length:]
        return status, data[:length]

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def encode(method: str, path: str, body: Mapping[str, object] | None) -> bytes:
    """Encodes a request. Raises InvalidInput where the server's limits are exceeded."""
    payload = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    if len(payload) > MAX_BODY:
        raise InvalidInput(
            f"the body of {method} {path} has {len(payload)} bytes",
            remediation=f"firecracker reads at most {MAX_BODY}",
        )
    line = f"{method} {path} HTTP/1.1"
    if not path.isascii() or not path.isprintable() or " " in path or len(line) > MAX_LINE - 2:
        raise InvalidInput(
            f"API path {safe_text(path)!r} is not one", remediation="name a plain one"
        )
    head = [line, "Host: localhost", "Accept: application/json", f"Content-Length: {len(payload)}"]
    if payload:
        head.append("Content-Type: application/json")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + payload


def _limit(stream: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    stream.settimeout(left)


def _receive(stream: socket.socket, deadline: float) -> bytes:
    _limit(stream, deadline)
    part = stream.recv(_RECEIVE)
    if not part:
        raise ValueError("it closed the connection")
    return part


def _head(data: bytes) -> tuple[int, int]:
    """``(status, length of the body)``. Raises ValueError."""
    lines = data.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if not words[0].startswith("HTTP/1.") or len(words) < 2 or not _digits(words[1], 3):
        raise ValueError(f"its answer is not HTTP: {safe_text(lines[0], 80)}")
    length = 0
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length":
            if not _digits(value.strip(), 7):
                raise ValueError("its answer has no proper length")
            length = int(value)
    if length > _MAX_ANSWER:
        raise ValueError(f"its answer has {length} bytes")
    return int(words[1]), length


def _digits(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= most


def _outcome(what: str, status: int, payload: bytes) -> Any:
    if status == 204 or (status == 200 and not payload):
        return None
    try:
        value = json.loads(payload) if payload else None
    except (ValueError, RecursionError):
        value = None
    if status == 200 and value is not None:
        return value
    fault = value.get("fault_message") if isinstance(value, dict) else None
    text = safe_text(fault.strip(), _FAULT_CHARACTERS) if isinstance(fault, str) else ""
    raise ApiError(what, status, text)
