"""What goes between a worker and its owner: frames of a 4-byte little-endian length and a body.

A body is an operation of one byte ("b" build, "l" load, "d" decide, "q" query, "v" version) and
JSON; an answer is "+" and what it is, "-" and why there is none, or "!" and what is missing for an
engine (``EngineMissing``).
"""

import socket
import struct

import msgspec

from agentd.policy.errors import BundleProblem
from agentd.policy.reads import Reads

MAX_FRAME = 16 << 20
HEAD = struct.Struct("<I")


class Build(msgspec.Struct):
    path: str
    modules: dict[str, str]
    data: str
    entrypoints: list[str]


class Compiled(msgspec.Struct):
    builtins: list[str]
    reads: Reads
    problems: list[BundleProblem] = []


class Load(msgspec.Struct):
    path: str
    seconds: float  # that an answer may take


class EngineMissing(msgspec.Struct, frozen=True):
    """Why the engine cannot be loaded; ``fix`` is what to type."""

    what: str
    fix: str


class EngineInfo(msgspec.Struct, frozen=True):
    version: str
    stand_in: bool  # libatomic is missing, and another library stands in its place


class Query(msgspec.Struct):
    entrypoint: str
    input: msgspec.Raw = msgspec.Raw(b"{}")


def send(stream: socket.socket, body: bytes) -> None:
    stream.sendall(packed(body))


def packed(body: bytes) -> bytes:
    return HEAD.pack(len(body)) + body


def receive(stream: socket.socket) -> bytes | None:
    """Receive a frame; None at the end. Raises ValueError for a frame that is too large."""
    data = stream.recv(1 << 16)
    while data and len(data) < HEAD.size:
        more = stream.recv(1 << 16)
        data = data + more if more else b""
    if not data:
        return None
    (size,) = HEAD.unpack_from(data)
    if size > MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes")
    if len(data) == HEAD.size + size:
        return data[HEAD.size :]
    parts, have = [data], len(data)
    while have < HEAD.size + size:
        more = stream.recv(min(1 << 20, HEAD.size + size - have))
        if not more:
            return None
        parts.append(more)
        have += len(more)
    return b"".join(parts)[HEAD.size :]
