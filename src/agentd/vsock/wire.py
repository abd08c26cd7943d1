"""vhost-user messages, of the back-end's side (QEMU: docs/interop/vhost-user.rst)."""

import os
import socket
import struct
import time
from typing import NamedTuple

from agentd.linux.bounded import limit
from agentd.linux.rights import descriptors
from agentd.vsock.errors import Violation

GET_FEATURES = 1
SET_FEATURES = 2
SET_OWNER = 3
RESET_OWNER = 4
SET_MEM_TABLE = 5
SET_VRING_NUM = 8
SET_VRING_ADDR = 9
SET_VRING_BASE = 10
GET_VRING_BASE = 11
SET_VRING_KICK = 12
SET_VRING_CALL = 13
SET_VRING_ERR = 14
GET_PROTOCOL_FEATURES = 15
SET_PROTOCOL_FEATURES = 16
GET_QUEUE_NUM = 17
SET_VRING_ENABLE = 18
GET_CONFIG = 24

VERSION = 1
VERSION_MASK = 3
REPLY = 1 << 2
NEED_REPLY = 1 << 3

MAX_FDS = 8  # a memory table's regions
MAX_PAYLOAD = 512  # the longest known: a table of eight regions, or 256 bytes of configuration
_SECONDS = 5.0  # for the rest of a message, or for room for an answer

_HEADER = struct.Struct("=III")  # request, flags, size of the payload; all in host order
U64 = struct.Struct("=Q")
VRING_STATE = struct.Struct("=II")  # index, number
VRING_ADDR = struct.Struct("=IIQQQQ")  # index, flags, descriptors, used, available, log
CONFIG = struct.Struct("=III")  # offset, size, flags
MEM_TABLE = struct.Struct("=II")  # regions, padding
MEM_REGION = struct.Struct("=QQQQ")  # guest address, size, VMM's address, offset in the file


class VhostMessage(NamedTuple):
    """``fds`` belong to whoever holds the message."""

    request: int
    needs_reply: bool
    payload: bytes
    fds: list[int]


def receive(sock: socket.socket) -> VhostMessage | None:
    """Return the next message, or None at the end of the stream between two.

    Raises Violation for what is no message, and when its rest is not there in 5 s.
    """
    fds: list[int] = []
    try:
        end = time.monotonic() + _SECONDS
        header = _exactly(sock, _HEADER.size, fds, end)
        if not header:
            return None
        request, flags, size = _HEADER.unpack(header)
        if flags & VERSION_MASK != VERSION or flags & REPLY:
            raise Violation(f"vhost-user request {request} has flags {flags:#x}")
        if size > MAX_PAYLOAD:
            raise Violation(f"vhost-user request {request} has a payload of {size} bytes")
        payload = _exactly(sock, size, fds, end)
        if len(payload) < size:
            raise Violation("the control socket ended within a message")
        message = VhostMessage(request, bool(flags & NEED_REPLY), payload, fds)
        fds = []
        return message
    except TimeoutError as error:
        raise Violation("the control socket stalled within a message") from error
    except ConnectionError:
        return None  # a VMM that was killed
    finally:
        close_all(fds)


def reply(sock: socket.socket, request: int, payload: bytes) -> None:
    """Sends an answer. Raises Violation when the VMM does not take it in 5 s."""
    try:
        sock.settimeout(_SECONDS)
        sock.sendall(_HEADER.pack(request, VERSION | REPLY, len(payload)) + payload)
    except TimeoutError as error:
        raise Violation("the control socket takes no answer") from error
    except ConnectionError:
        return  # its end is found by the next receive


def close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _exactly(sock: socket.socket, size: int, fds: list[int], end: float) -> bytes:
    """``size`` bytes, or nothing at an end before the first; descriptors are added to ``fds``.
    Raises TimeoutError where they are not there by ``end``, however slowly they come."""
    data = b""
    while len(data) < size:
        limit(sock, end)
        part, control, flags, _ = sock.recvmsg(
            size - len(data), socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
        )
        fds += descriptors(control)
        if flags & socket.MSG_CTRUNC or len(fds) > MAX_FDS:
            raise Violation("more descriptors than a message has, or than this process may hold")
        if not part:
            if data:
                raise Violation("the control socket ended within a message")
            break
        data += part
    return data
