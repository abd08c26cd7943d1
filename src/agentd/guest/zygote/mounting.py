"""Mounts of the host's folders, made at request by who has the rights to."""

import os
import socket

from agentd.guest.zygote.messages import refuse, send
from agentd.linux import mounts, paths


def serve_mount(sock: socket.socket, request: dict[str, object]) -> None:
    """Answer ``{"n":N,"path":..,"ro":bool}`` with a detached mount of that path, or with what
    refused it."""
    number = request.get("n")
    try:
        source = paths.open_plain(str(request["path"]))
        try:
            fd = mounts.clone_tree(source, readonly=bool(request["ro"]))
        finally:
            os.close(source)
        try:
            send(sock, {"n": number, "ok": True}, [fd])
        finally:
            os.close(fd)
    except Exception as error:
        refuse(sock, number, error)
