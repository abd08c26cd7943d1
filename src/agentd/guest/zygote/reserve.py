"""Takes the room on a sandbox's disk that its host is to write to, as one of the sandbox's group.

The memory of a tmpfs is counted as whose process takes it first, and that is not the host's. A
child of the zygote, or of the launcher of containers, does it. Standard library only.
"""

import os
import socket
from typing import NoReturn

from agentd.guest.zygote.asked import Request
from agentd.guest.zygote.group import enter_group
from agentd.guest.zygote.messages import receive, refuse, send
from agentd.linux.rights import close_all

#: Descriptors of files, and stretches of room in them, of one message.
MAX_FILES, MAX_STRETCHES = 32, 1024


def answer(control: socket.socket, request: Request, fds: list[int]) -> None:
    """Have a child serve at the descriptor that came along; close ``fds``. Never raises."""
    number = request.get("n")
    try:
        if os.fork() == 0:
            _serve(control, fds)
        send(control, {"n": number, "ok": True})
    except (OSError, MemoryError) as error:
        refuse(control, number, error)
    finally:
        close_all(fds)


def _serve(control: socket.socket, fds: list[int]) -> NoReturn:
    """Go into the group, then take what is asked for until the host closes its end."""
    try:
        control.close()
        sock = socket.socket(fileno=fds[0])
        enter_group(sock)
        while True:
            request, files = receive(sock)
            try:
                _take(request, files)
            except OSError as error:
                refuse(sock, None, error)
            else:
                send(sock, {"ok": True})
            finally:
                close_all(files)
    finally:
        os._exit(0)


def _take(request: Request, files: list[int]) -> None:
    wanted = request["room"]
    assert isinstance(wanted, list)  # noqa: S101  (the host made it; this narrows the type)
    for fd, stretches in zip(files, wanted, strict=True):
        for start, length in stretches:
            os.posix_fallocate(fd, start, length)
