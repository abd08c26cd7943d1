"""Messages of netlink(7), and of rtnetlink(7). Standard library only."""

import socket
import struct

# linux/netlink.h
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NLMSG_ERROR = 2
REQUEST, ACK, CREATE, APPEND = 0x1, 0x4, 0x400, 0x800
_NESTED = 0x8000
_SECONDS = 10  # that the kernel may take to answer; it may load a module meanwhile


def request(kind: int, body: bytes) -> None:
    """Have the kernel make what a message of rtnetlink says. Raises OSError."""
    exchange(socket.NETLINK_ROUTE, message(kind, REQUEST | ACK | CREATE, 1, body), 1)


def attribute(kind: int, data: bytes) -> bytes:
    """Encodes one as netlink has it, with what fills it up."""
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def nest(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def be32(value: int) -> bytes:
    return struct.pack(">i", value)


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def exchange(protocol: int, request: bytes, last: int) -> None:
    """Send messages of netlink, and wait until number ``last`` is acknowledged. Raises OSError."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, protocol) as netlink:
        netlink.settimeout(_SECONDS)
        netlink.send(request)
        while not _acknowledged(netlink.recv(1 << 16), last):
            pass


def _acknowledged(answers: bytes, last: int) -> bool:
    """Raises OSError for the first that is an error."""
    at, found = 0, False
    while at + _HEADER.size <= len(answers):
        length, kind, _flags, sequence, _port = _HEADER.unpack_from(answers, at)
        if kind == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", answers, at + _HEADER.size)
            if code:
                raise OSError(-code, "a device, route or redirect was refused by the kernel")
            found = found or sequence == last
        at += max(length + 3 & ~3, _HEADER.size)
    return found
