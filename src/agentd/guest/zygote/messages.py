"""Messages between agentd's own processes: one JSON object each, descriptors beside it.

Standard library only.
"""

import array
import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterable, Sequence

MAX_MESSAGE = 128 << 10
MAX_FDS = 34
#: Where an agent that a runtime starts has its host's end, and a detached mount of the layer to
#: come (``stack``).
LISTENER_FD, COMING_FD = 3, 4
_CMSG_SPACE = socket.CMSG_SPACE(MAX_FDS * 4)
# The kernel is short of memory for the moment.
_PASSING = (errno.EINTR, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 0.02  # seconds until the next try
_TRIES = 50


def receive(sock: socket.socket) -> tuple[dict[str, object], list[int]]:
    """One message and its descriptors, close-on-exec.

    Raises EOFError when the peer is gone, ValueError for a message that is cut or no JSON, OSError
    where the kernel has no memory for it.
    """
    # socket.recv_fds forgets MSG_CMSG_CLOEXEC.
    try:
        data, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE, _CMSG_SPACE, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        if error.errno not in _PASSING:  # ECONNRESET: it ended before it had read our answers
            raise EOFError from None
        time.sleep(_PAUSE)
        raise
    fds = array.array("i")
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    if not data:
        raise EOFError
    try:
        if flags & socket.MSG_CTRUNC:
            raise ValueError("no descriptor is left for what was passed along")
        if flags & socket.MSG_TRUNC:
            raise ValueError(f"a message is longer than {MAX_MESSAGE} bytes")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("a message is no JSON object")
        return message, list(fds)
    except ValueError:
        close_all(fds)
        raise


def send(sock: socket.socket, message: dict[str, object], fds: Sequence[int] = ()) -> None:
    """Waits a second for memory where the kernel has none. Raises OSError."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    data = json.dumps(message).encode()
    tries = _TRIES
    while True:
        try:
            sock.sendmsg([data], rights)
            return
        except OSError as error:
            tries -= 1
            if error.errno not in _PASSING or not tries:
                raise
        time.sleep(_PAUSE)


def refuse(sock: socket.socket, number: object, error: BaseException) -> None:
    """Answer request ``number`` with an error. A peer that is gone is noticed later."""
    code = getattr(error, "errno", None)
    text = str(error) or type(error).__name__
    with contextlib.suppress(OSError):
        send(sock, {"n": number, "error": text, "errno": code})


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
