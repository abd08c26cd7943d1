"""Descriptors beside a message (SCM_RIGHTS, unix(7)): each close-on-exec from its first moment.

``socket.recv_fds`` forgets that flag.
"""

import array
import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Sequence

#: Of a unix socket that takes nothing just now: it is full, there is no memory, or too many
#: descriptors of its user's are on their way.
NO_ROOM = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = (), flags: int = 0) -> int:
    """Return how many bytes were sent, with all of the descriptors. Raises OSError."""
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return sock.sendmsg([data], beside, flags)


def receive(
    sock: socket.socket, size: int, most: int, flags: int = 0
) -> tuple[bytes, list[int], int]:
    """Return at most ``size`` bytes, the descriptors beside them, and the message's flags: with
    MSG_CTRUNC there were more than ``most``, or than this process may hold. Raises OSError."""
    space = socket.CMSG_SPACE(most * 4)
    data, control, told, _ = sock.recvmsg(size, space, flags | socket.MSG_CMSG_CLOEXEC)
    return data, descriptors(control), told


def descriptors(control: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """Return those in the ancillary data of a ``recvmsg``, in order."""
    fds = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
