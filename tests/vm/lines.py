"""A client of protocol v1 that reads byte for byte what an agent answers."""

import base64
import json
import socket
from typing import Any


class Lines:
    """Owns its stream."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self._rest = b""

    def send(self, *requests: dict[str, Any] | bytes) -> None:
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in requests]
        self.stream.sendall(b"".join(lines))

    def line(self) -> bytes:
        """The next line, b"" at the end of the stream."""
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            data = self.stream.recv(1 << 18)
            if not data:
                self._rest = b""
                return b"".join(parts)
            parts.append(data)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line + b"\n"

    def reply(self) -> dict[str, Any]:
        """The next reply, its outputs decoded."""
        line = self.line()
        assert line.endswith(b"\n"), f"the connection ended after {line[:100]!r}"
        reply: dict[str, Any] = json.loads(line)
        return reply | {name: base64.b64decode(reply[name]) for name in ("stdout", "stderr")}

    def run(self, *argv: str, **fields: Any) -> dict[str, Any]:
        self.send({"command": argv[0], "args": list(argv[1:]), **fields})
        return self.reply()

    def sh(self, script: str, **fields: Any) -> str:
        """The script's stdout, as text."""
        reply = self.run("sh", "-c", script, **fields)
        assert reply["error"] is None, reply["error"]
        text: str = reply["stdout"].decode()
        return text

    def close(self) -> None:
        self.stream.close()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
