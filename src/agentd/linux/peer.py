"""Who is at the other end of a unix socket, as the kernel tells (unix(7), SO_PEERCRED)."""

import os
import socket
import struct
from typing import NamedTuple

from agentd.linux.waiting import is_ready

_UCRED = struct.Struct("iii")  # pid, uid, gid; -1 reads as no such user
_SO_PEERPIDFD = 77  # Linux 6.5, include/uapi/asm-generic/socket.h


class Peer(NamedTuple):
    uid: int
    pid: int
    foreign: bool  # in another user or pid namespace than ours


def peer_of(connection: socket.socket) -> Peer:
    """Asks once for each accepted connection. Raises OSError where it is no unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(raw)
    return Peer(uid, pid, _is_foreign(connection, pid))


def _is_foreign(connection: socket.socket, pid: int) -> bool:
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        # Before Linux 6.5, or the process is gone: then /proc has nothing of it either.
        return _other_namespace(pid)
    try:
        foreign = _other_namespace(pid)
        # The number may have gone to another process meanwhile, unless ours is still there.
        return foreign or is_ready(pidfd)
    finally:
        os.close(pidfd)


def _other_namespace(pid: int) -> bool:
    """Return whether its user or pid namespace is not ours; true where it cannot be found, too."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
            pids = next((line for line in status if line.startswith("NSpid:")), "")
    except OSError:
        return True
    # proc_pid_status(5): one number for each pid namespace from ours inwards. Anyone may read it.
    if len(pids.split()) != 2:
        return True
    try:
        theirs, ours = os.stat(f"/proc/{pid}/ns/user"), os.stat("/proc/self/ns/user")
    except PermissionError:
        return False  # another user's (ptrace(2), access mode checks), in our own pid namespace
    except OSError:
        return True
    return (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino)
