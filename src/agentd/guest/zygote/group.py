"""Going into the cgroup that the host has made."""

import array
import os
import socket

_MAX_DOORS = 8
_MAX_NAMES = 256  # bytes


def enter_group(listener: socket.socket) -> list[str]:
    """Take one message with the group's doors and go through each.

    Returns what the host calls it: "unified", or controllers of version 1; nothing for no group.

    Single-threaded only: version 1 moves the calling thread. Raises OSError, also when the host
    has gone.
    """
    space = socket.CMSG_SPACE(_MAX_DOORS * 4)
    data, ancillary, _, _ = listener.recvmsg(_MAX_NAMES, space, socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise OSError("the host is gone")
    doors = array.array("i")
    for _level, _kind, raw in ancillary:
        doors.frombytes(raw)
    try:
        for fd in doors:
            os.write(fd, b"0")
    finally:
        for fd in doors:
            os.close(fd)
    return data.decode("ascii").split(",") if doors else []
