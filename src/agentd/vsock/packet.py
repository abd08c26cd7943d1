"""vsock packets (virtio 1.2, section 5.10.6)."""

import struct
from typing import NamedTuple

from agentd.vsock.errors import Violation
from agentd.vsock.ring import DescriptorChain

HOST_CID = 2
STREAM = 1
MAX_DATA = 64 << 10  # Linux: VIRTIO_VSOCK_MAX_PKT_BUF_SIZE

REQUEST = 1
RESPONSE = 2
RST = 3
SHUTDOWN = 4
RW = 5
CREDIT_UPDATE = 6
CREDIT_REQUEST = 7

NO_RECEIVE = 1  # flags of SHUTDOWN
NO_SEND = 2

# src cid, dst cid, src port, dst port, length, type, op, flags, buf_alloc, fwd_cnt
HEADER = struct.Struct("<QQIIIHHIII")
SIZE = HEADER.size


class Packet(NamedTuple):
    """A packet that the guest sent; ``data`` is still the guest's memory."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    kind: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int
    data: list[memoryview]


def parse(chain: DescriptorChain) -> Packet:
    """Raises Violation when the chain is shorter than its packet, or that is too long."""
    parts = chain.parts
    if chain.size < SIZE:
        raise Violation(f"a packet of {chain.size} bytes")
    if len(parts[0]) < SIZE:
        header = bytes(b"".join(cut(parts, 0, SIZE)))
        fields = HEADER.unpack(header)
        data = cut(parts, SIZE, chain.size - SIZE)
    else:
        fields = HEADER.unpack_from(parts[0])
        data = parts[1:] if len(parts[0]) == SIZE else [parts[0][SIZE:], *parts[1:]]
    length, there = fields[4], chain.size - SIZE
    if length > there or length > MAX_DATA:
        raise Violation(f"a packet says it has {length} bytes of data, and has {there}")
    if length < there:
        data = cut(data, 0, length)
    return Packet._make((*fields, data))


def cut(parts: list[memoryview], start: int, length: int) -> list[memoryview]:
    """Returns ``length`` bytes from ``start`` on; the parts have them."""
    found = []
    for part in parts:
        if start < len(part) and length > 0:
            piece = part[start : start + length]
            length -= len(piece)
            found.append(piece)
        start = max(0, start - len(part))
    return found


def write(chain: DescriptorChain, header: bytes) -> None:
    """Put a packet's header at the front of a chain that has the room."""
    for part in chain.parts:
        size = min(len(part), len(header))
        part[:size] = header[:size]
        header = header[size:]
        if not header:
            return
