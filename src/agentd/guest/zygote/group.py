"""Going into the cgroup that the host has made."""

import os
import socket

from agentd.linux import rights

_MAX_DOORS = 8
_MAX_NAMES = 256  # bytes


def enter_group(listener: socket.socket) -> list[str]:
    """Take one message with the group's doors and go through each.

    Returns what the host calls it: "unified", or controllers of version 1; nothing for no group.

    Single-threaded only: version 1 moves the calling thread. Raises OSError, also when the host
    has gone.
    """
    data, doors, _ = rights.receive(listener, _MAX_NAMES, _MAX_DOORS)
    if not data:
        raise OSError("the host is gone")
    try:
        for fd in doors:
            os.write(fd, b"0")
    finally:
        for fd in doors:
            os.close(fd)
    return data.decode("ascii").split(",") if doors else []
