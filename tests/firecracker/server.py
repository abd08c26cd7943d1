"""HTTP as Firecracker's server reads it: ten connections, bodies by Content-Length, small heads."""

import json
import os
import socket
import threading
import time

from tests.firecracker.machine import BAD_CALL, Die, Machine, log
from tests.firecracker.schema import Refused

MAX_CONNECTIONS = 10
MAX_BODY = 51_200
MAX_LINE = 1_024
_REASONS = {200: "OK", 204: "No Content", 400: "Bad Request", 503: "Service Unavailable"}


class Server:
    """Serves one machine; requests are performed one at a time."""

    def __init__(self, listener: socket.socket, machine: Machine) -> None:
        self._listener = listener
        self._machine = machine
        self._lock = threading.Lock()
        self._connections = 0
        self.closed = False

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # the listener was closed
            with self._lock:
                full = self._connections >= MAX_CONNECTIONS
                self._connections += not full
            if full:
                fault = f"Too many open connections, at most {MAX_CONNECTIONS}."
                client.sendall(answer(503, {"fault_message": fault}))
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                reader = Reader(client)
                while (request := reader.request()) is not None:
                    self._answer(client, *request)
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._connections -= 1

    def _answer(self, client: socket.socket, method: str, path: str, body: bytes | None) -> None:
        if path == self._machine.hang:
            time.sleep(3600)
        try:
            with self._lock:
                value = self._perform(method, path, body)
        except Refused as error:
            client.sendall(answer(400, {"fault_message": str(error)}))
        except Die as error:
            if str(error) and error.status < BAD_CALL:  # struck, it does not come to answer
                client.sendall(answer(400, {"fault_message": str(error)}))
            log("ERROR", str(error))
            os._exit(error.status)
        else:
            client.sendall(answer(200 if value is not None else 204, value))

    def _perform(self, method: str, path: str, body: bytes | None) -> object:
        operation = self._machine.api.find(method, path)
        if method == "GET":
            return self._machine.get(path)
        if body is None:
            raise Refused(f"Empty {method} request.")
        try:
            value = json.loads(body)
        except ValueError as error:
            raise Refused(
                f"An error occurred when deserializing the json body of a request: {error}."
            ) from error
        self._machine.api.check(operation, value)
        self._machine.perform(method, path, operation, value)
        return None


class Reader:
    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._data = b""

    def request(self) -> tuple[str, str, bytes | None] | None:
        """``(method, path, body)``; None at the end. A body that is too long ends it too."""
        while b"\r\n\r\n" not in self._data:
            if not self._more():
                return None
            if any(
                len(line) > MAX_LINE for line in self._data.split(b"\r\n\r\n")[0].split(b"\r\n")
            ):
                raise ValueError("a line of the head is too long")
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        # "Transfer-Encoding: chunked" is a header that it knows, and a body that it never reads.
        length = int(headers.get("content-length", "0"))
        if length > MAX_BODY:
            fault = (
                f"Request payload with size {length} is larger than the limit of {MAX_BODY} "
                "allowed by server."
            )
            self._client.sendall(answer(400, {"fault_message": fault}))
            return None
        while len(self._data) < length:
            if not self._more():
                return None
        body, self._data = self._data[:length], self._data[length:]
        return method, path, body if length else None

    def _more(self) -> bool:
        data = self._client.recv(64 << 10)
        self._data += data
        return bool(data)


def answer(status: int, value: object) -> bytes:
    body = b"" if value is None else json.dumps(value).encode()
    head = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        "Server: Firecracker API",
        "Connection: keep-alive",
    ]
    if body:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body
