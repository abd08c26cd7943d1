"""Messages between agentd's own processes: one JSON object each, descriptors beside it.

Standard library and ``agentd.linux`` only.
"""

import contextlib
import errno
import json
import socket
import time
from collections.abc import Sequence

from agentd.linux import rights

MAX_MESSAGE = 128 << 10
MAX_FDS = 34
#: Where an agent that a runtime starts has its host's end, and a detached mount of the layer to
#: come (``stack``).
LISTENER_FD, COMING_FD = 3, 4
# The kernel is short of memory for the moment.
_PASSING = (errno.EINTR, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 0.02  # seconds until the next try
_TRIES = 50


def receive(sock: socket.socket) -> tuple[dict[str, object], list[int]]:
    """Receives one message and its descriptors, close-on-exec.

    Raises EOFError when the peer is gone, ValueError for a message that is cut or no JSON, OSError
    where the kernel has no memory for it.
    """
    try:
        data, fds, flags = rights.receive(sock, MAX_MESSAGE, MAX_FDS)
    except OSError as error:
        if error.errno not in _PASSING:  # ECONNRESET: it ended before it had read our answers
            raise EOFError from None
        time.sleep(_PAUSE)
        raise
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
        return message, fds
    except ValueError:
        rights.close_all(fds)
        raise


def send(sock: socket.socket, message: dict[str, object], fds: Sequence[int] = ()) -> None:
    """Waits a second for memory where the kernel has none. Raises OSError."""
    data = json.dumps(message).encode()
    tries = _TRIES
    while True:
        try:
            rights.send(sock, data, fds)
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
