"""Notes what was asked, for ``agentd policy learn``: one JSON document a line."""

import fcntl
import os

import msgspec

from agentd.model import typed
from agentd.model.decision import Asked
from agentd.model.errors import InvalidInput, OperationFailed

VARIABLE = "AGENTD_POLICY_LEARN"
# The parameters that shapes are made of: the others may be large, and secret.
JUDGED = ("path", "url", "host", "port", "net", "egress", "mounts", "workspace", "isolation")
MAX_FILE = 64 << 20
MAX_LINE = 1 << 20


def record(asked: Asked, path: str) -> None:
    """Appends it. Several processes may do so at once. Raises OperationFailed, InvalidInput."""
    judged = {name: asked.parameters[name] for name in JUDGED if name in asked.parameters}
    line = msgspec.json.encode(msgspec.structs.replace(asked, parameters=judged)) + b"\n"
    if len(line) > MAX_LINE:
        raise InvalidInput(
            f"a request of {len(line)} bytes is too large to learn from",
            remediation="ask for less, or decide without learning",
        )
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # a write may be short, and lines must not mix
            if os.fstat(fd).st_size + len(line) > MAX_FILE:
                raise InvalidInput(f"{path} is full", remediation="learn from fewer calls")
            view = memoryview(line)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
    except OSError as error:
        raise OperationFailed(
            f"cannot note the request in {path}",
            errno=error.errno or 0,
            cause=str(error),
            remediation="make room in its folder, on this machine, or choose another by TMPDIR",
        ) from error


def recorded(path: str) -> list[Asked]:
    """Raises OperationFailed, InvalidInput for what is none."""
    try:
        with open(path, "rb") as file:
            lines = file.read(MAX_FILE + 1).splitlines()
    except OSError as error:
        raise OperationFailed(
            f"cannot read {path}",
            errno=error.errno or 0,
            cause=str(error),
            remediation="leave it where it is until the command has ended",
        ) from error
    try:
        return [typed.decoder(Asked).decode(line) for line in lines if line]
    except msgspec.MsgspecError as error:
        raise InvalidInput(
            f"{path} holds no requests",
            cause=str(error),
            remediation="name a file that agentd policy learn has written",
        ) from error
