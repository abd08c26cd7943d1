"""A guest agent that knows protocol v1 and nothing else, as PID 1 of a virtual machine.

It stands for every agent that was written to the first contract: one connection at a time, one
line a request, nothing beyond the fields of the contract. Runs inside; imports nothing of ours.
"""

import base64
import contextlib
import json
import socket
import subprocess
import sys
from typing import NoReturn


def main(port: int) -> None:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen(16)
    serve(listener)


def serve(listener: socket.socket) -> NoReturn:
    while True:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError), connection, connection.makefile("rwb") as stream:
            for line in stream:
                stream.write(json.dumps(answer(line), separators=(",", ":")).encode() + b"\n")
                stream.flush()


def answer(line: bytes) -> dict[str, object]:
    try:
        request = json.loads(line)
        argv = [request["command"], *request.get("args", [])]
    except (ValueError, KeyError, TypeError) as error:
        return reply(-1, b"", b"", f"Invalid request: {error!r}")
    text = request.get("stdin")
    try:
        done = subprocess.run(
            argv,
            cwd=request.get("cwd"),
            env={"PATH": "/bin:/usr/bin", **request.get("env", {})},
            input=None if text is None else text.encode(),
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        number = error.errno
        return reply(-1, b"", b"", f"Failed to spawn process: {error.strerror} (os error {number})")
    return reply(max(done.returncode, -1), done.stdout, done.stderr, None)


def reply(code: int, out: bytes, err: bytes, error: str | None) -> dict[str, object]:
    texts = [base64.b64encode(data).decode() for data in (out, err)]
    return {"exit_code": code, "stdout": texts[0], "stderr": texts[1], "error": error}


if __name__ == "__main__":
    main(int(sys.argv[1]))
