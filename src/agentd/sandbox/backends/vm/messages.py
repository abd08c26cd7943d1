"""One JSON object a SEQPACKET message, descriptors beside it. Standard library only."""

import array
import json
import os
import socket
from collections.abc import Sequence

MAX_MESSAGE = 128 << 10
MAX_FDS = 24
_CMSG_SPACE = socket.CMSG_SPACE(MAX_FDS * 4)


def receive(sock: socket.socket) -> tuple[dict[str, object], list[int]]:
    """One message and its descriptors, close-on-exec.

    Raises EOFError at the end, ValueError for one that is cut or no JSON.
    """
    # socket.recv_fds forgets MSG_CMSG_CLOEXEC.
    data, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE, _CMSG_SPACE, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    if not data:
        raise EOFError
    try:
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            raise ValueError("a message was cut, or no descriptor is left for what came along")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("a message is no JSON object")
        return message, list(fds)
    except ValueError:
        for fd in fds:
            os.close(fd)
        raise


def send(sock: socket.socket, message: dict[str, object], fds: Sequence[int] = ()) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([json.dumps(message).encode()], rights)
