"""Messages between the daemon and its supervisor: one JSON object a SEQPACKET packet.

    request   {"n": 7, "op": "launch", "whose": "uid:1000", ...}; whose is a principal's, if any
    answer    {"n": 7, "ok": value} or {"n": 7, "error": {...}}; none to a request without "n"
    event     {"event": "ended", "id": "wall-...", "reason": "lease_expired", "why": ""}

Descriptors go from the supervisor to the daemon only. Both ends are ours and of the same user.
"""

import json
import os
import socket
from collections.abc import Sequence

from agentd.linux import rights
from agentd.model import errors
from agentd.model.errors import AgentdError, InvalidInput, SandboxError

# Less than the kernel's default send buffer (net.core.wmem_default, 208 KiB with its overhead).
MAX_MESSAGE = 96 << 10
_MAX_FDS = 4
_MORE = "close some connections, or raise the limit of open files (ulimit -n, fs.file-max)"
Message = dict[str, object]
_KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, AgentdError)
}


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Sends a message and descriptors. Raises OSError where the peer is gone, InvalidInput for a
    message that is too long."""
    data = json.dumps(message).encode()
    if len(data) > MAX_MESSAGE:
        raise InvalidInput(
            f"the request takes {len(data)} bytes, over {MAX_MESSAGE}",
            remediation="give the sandbox less environment; write large values to a file in it",
        )
    rights.send(sock, data, fds)


def receive(sock: socket.socket) -> tuple[Message, list[int]]:
    """Receive a message and its descriptors, close-on-exec. Raises EOFError at its end, OSError,
    and ValueError for what is no message.

    Where no descriptor is left for those that came along, the answer they came with is an error.
    """
    data, fds, flags = rights.receive(sock, MAX_MESSAGE + 1, _MAX_FDS)
    if not data:
        raise EOFError
    if flags & socket.MSG_TRUNC:
        rights.close_all(fds)
        raise OSError("a message of the supervisor was cut")
    try:
        message = _decoded(data)
    except ValueError:
        rights.close_all(fds)
        raise
    if flags & socket.MSG_CTRUNC:
        rights.close_all(fds)
        lost = SandboxError("no descriptor is left for a sandbox's stream", remediation=_MORE)
        return {"n": message.get("n"), "error": encode_error(lost)}, []
    return message, fds


def _decoded(data: bytes) -> Message:
    """Raises ValueError."""
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError(f"a message is an object, and this is a {type(message).__name__}")
    return message


def to_file(value: object) -> int:
    """Returns a descriptor of a value too large for a message; whoever receives it closes it."""
    fd = os.memfd_create("agentd", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(json.dumps(value).encode())
    return fd


def from_file(fd: int) -> object:
    """Reads what ``to_file`` wrote, and closes the descriptor."""
    with open(fd, "rb") as file:
        file.seek(0)
        return json.loads(file.read())


def encode_error(error: BaseException) -> Message:
    """Returns an error's class and four fields, the nearest that both sides know; one that is not
    ours becomes a SandboxError."""
    if isinstance(error, AgentdError):
        names = (kind.__name__ for kind in type(error).__mro__)
        return {"type": next(name for name in names if name in _KINDS), **error.as_dict()}
    text = f"{type(error).__name__}: {error}"
    return {"type": "SandboxError", "code": "sandbox_error", "message": text}


def decode_error(fields: Message) -> AgentdError:
    return _KINDS.get(str(fields.get("type")), SandboxError)(
        str(fields.get("message")),
        cause=str(fields.get("cause", "")),
        remediation=str(fields.get("remediation", "")),
    )
