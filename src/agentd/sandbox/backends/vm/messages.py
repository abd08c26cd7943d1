"""One JSON object a SEQPACKET message, descriptors beside it. Standard library only."""

import array
import json
import socket
from collections.abc import Sequence

MAX_MESSAGE = 128 << 10
MAX_FDS = 24
_CMSG_SPACE = socket.CMSG_SPACE(MAX_FDS * 4)


def receive(sock: socket.socket) -> tuple[dict[str, object], list[int]]:
    """One message and its descriptors, close-on-exec. Raises EOFError at the end."""
    # socket.recv_fds forgets MSG_CMSG_CLOEXEC.
    data, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE, _CMSG_SPACE, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    if not data:
        raise EOFError
    return json.loads(data), list(fds)


def send(sock: socket.socket, message: dict[str, object], fds: Sequence[int] = ()) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([json.dumps(message).encode()], rights)
