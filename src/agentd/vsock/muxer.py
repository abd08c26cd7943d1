"""Packets to connections and back: the guest's send ring is taken, its receive ring filled."""

import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from agentd.vsock import packet
from agentd.vsock.connection import (
    ASK_DUE,
    CREDIT_DUE,
    EVENTS,
    REQUEST_DUE,
    RESPONSE_DUE,
    SHUTDOWN_DUE,
    VsockConnection,
)
from agentd.vsock.errors import Violation
from agentd.vsock.packet import HEADER, HOST_CID, MAX_DATA, NO_RECEIVE, NO_SEND, STREAM, Packet
from agentd.vsock.poller import Poller
from agentd.vsock.ring import DescriptorChain, DescriptorRing

_PACKETS = 64  # of the guest's, taken before the unix sockets have their turn again
_APPETITE = 32  # chains filled by one read: 115 KiB of Linux's; then the next connection's turn
_VECTORS = 512  # readv(2) takes 1024
_RESETS = 2048  # answers to packets of no connection; a guest that takes none loses the rest
_WIDE, _NARROW = 256 << 10, 64 << 10  # windows: bytes buffered when a unix socket takes none
_WIDE_CONNECTIONS = 128  # so that all 1023 buffer 88 MiB at most
_FIRST_PORT, _LAST_PORT = 1 << 30, (1 << 31) - 1  # Firecracker's


class MuxerLimits(NamedTuple):
    connections: int = 1023  # Firecracker's
    #: Of those the guest's own: where they are all there is, the host gets no word in.
    dialled: int = 768
    half_open: int = 256  # host clients that have not sent their CONNECT line
    line_seconds: float = 2.0  # for that line
    request_seconds: float = 5.0  # for the guest's answer to it, its driver's start included


class Muxer:
    """``dial(port)`` gives a connected unix socket for a guest's connection, or None."""

    def __init__(
        self,
        cid: int,
        poller: Poller,
        dial: Callable[[int], socket.socket | None],
        limits: MuxerLimits,
    ) -> None:
        self._cid = cid
        self._poller = poller
        self._dial = dial
        self._limits = limits
        self._connections: dict[tuple[int, int], VsockConnection] = {}
        self._orphans: set[VsockConnection] = set()  # the guest is done with them, the host is not
        self._asked: dict[VsockConnection, float] = {}  # unanswered, and until when; oldest first
        self._queue: OrderedDict[VsockConnection, None] = (
            OrderedDict()
        )  # with something for the guest
        self._resets: deque[tuple[int, int]] = deque()
        self._port = _LAST_PORT
        self._dialled = 0

    def __len__(self) -> int:
        return len(self._connections) + len(self._orphans)

    # --- connections ---

    def open(self, sock: socket.socket, port: int) -> None:
        """Ask the guest for a stream to ``port``; owns ``sock``, and closes it when it may not."""
        if len(self) >= self._limits.connections:
            self._poller.retire(sock)
            return
        self._port = self._port + 1 if self._port < _LAST_PORT else _FIRST_PORT
        connection = self._add(sock, self._port, port)
        connection.due = REQUEST_DUE
        self._asked[connection] = time.monotonic() + self._limits.request_seconds
        self._enqueue(connection)

    def expire(self, now: float) -> float | None:
        """End what the guest did not answer in time; when to come back."""
        while self._asked:
            connection, deadline = next(iter(self._asked.items()))
            if deadline > now:
                return deadline
            self._abort(connection)
        return None

    def reset(self) -> None:
        """The guest started anew: it knows of no stream, but may still get requests."""
        self._resets.clear()
        for connection in list(self._connections.values()):
            if connection.requested:
                self._drop(connection)

    def close(self) -> None:
        for connection in [*self._connections.values(), *self._orphans]:
            self._drop(connection)

    def _add(self, sock: socket.socket, host_port: int, guest_port: int) -> VsockConnection:
        window = _WIDE if len(self) < _WIDE_CONNECTIONS else _NARROW
        connection = VsockConnection(sock, host_port, guest_port, window)
        self._connections[connection.key] = connection
        self._poller.watch(sock.fileno(), EVENTS, lambda events: self._ready(connection, events))
        return connection

    def _drop(self, connection: VsockConnection) -> None:
        if self._connections.get(connection.key) is connection:
            del self._connections[connection.key]
        self._orphans.discard(connection)
        if not connection.closed and connection.dialled:
            self._dialled -= 1
        self._asked.pop(connection, None)
        self._queue.pop(connection, None)
        connection.closed = True
        self._poller.retire(connection.sock)

    def _abort(self, connection: VsockConnection) -> None:
        """Drop it, and tell the guest if that has heard of it."""
        if connection.requested:
            self._refuse(connection.host_port, connection.guest_port)
        self._drop(connection)

    def _refuse(self, host_port: int, guest_port: int) -> None:
        if len(self._resets) < _RESETS:
            self._resets.append((host_port, guest_port))

    def _enqueue(self, connection: VsockConnection) -> None:
        self._queue.setdefault(connection)

    def _ready(self, connection: VsockConnection, events: int) -> None:
        connection.noticed(events)
        if connection.buffer:
            connection.flush()
        if connection in self._orphans:
            if not connection.buffer:
                self._drop(connection)
        else:
            self._attend(connection)

    def _attend(self, connection: VsockConnection) -> None:
        """After any event: is it over, or is there something for the guest?"""
        if connection.closed:
            return
        if connection.finished or (connection.gone and not connection.answered):
            self._abort(connection)
        elif connection.has_turn:
            self._enqueue(connection)

    # --- from the guest ---

    def take(self, ring: DescriptorRing) -> bool:
        """Handle what the guest sent; True when there is more. Raises Violation."""
        for _ in range(min(ring.waiting, _PACKETS)):
            chain = ring.take()
            self._packet(packet.parse(chain))
            ring.put(chain.head, 0)
        return ring.waiting > 0

    def _packet(self, got: Packet) -> None:
        if got.src_cid != self._cid or got.dst_cid != HOST_CID:
            return  # as every device does: there is nobody to answer for
        connection = self._connections.get((got.dst_port, got.src_port))
        if got.kind != STREAM or connection is None:
            self._stray(got)
            return
        if got.op == packet.RST:
            self._part(connection)
            return
        connection.credited(got.buf_alloc, got.fwd_cnt)
        if self._apply(connection, got):
            self._attend(connection)
        else:
            self._abort(connection)

    def _stray(self, got: Packet) -> None:
        if got.op == packet.REQUEST and got.kind == STREAM and self._accept(got):
            return
        if got.op != packet.RST:
            self._refuse(got.dst_port, got.src_port)

    def _accept(self, got: Packet) -> bool:
        if len(self) >= self._limits.connections or self._dialled >= self._limits.dialled:
            return False
        sock = self._dial(got.dst_port)
        if sock is None:
            return False
        connection = self._add(sock, got.dst_port, got.src_port)
        connection.dialled = True
        self._dialled += 1
        connection.credited(got.buf_alloc, got.fwd_cnt)
        connection.requested = connection.answered = True
        connection.due = RESPONSE_DUE
        self._enqueue(connection)
        return True

    def _apply(self, connection: VsockConnection, got: Packet) -> bool:
        """Apply it; False when the guest may not say that of this connection."""
        op = got.op
        if op == packet.RW:
            return connection.answered and connection.deliver(got.data, got.length)
        if op == packet.CREDIT_UPDATE:
            return connection.answered
        if op == packet.CREDIT_REQUEST:
            connection.due |= CREDIT_DUE
            return connection.answered
        if op == packet.SHUTDOWN:
            connection.shut_by_guest(got.flags)
            return connection.answered
        if op == packet.RESPONSE:
            return self._answered(connection)
        return False

    def _answered(self, connection: VsockConnection) -> bool:
        if connection.answered or not connection.requested:
            return False
        connection.answered = True
        self._asked.pop(connection, None)
        return connection.say(b"OK %d\n" % connection.host_port)

    def _part(self, connection: VsockConnection) -> None:
        """The guest forgot it; what it had sent before is still delivered."""
        if connection.buffer and not connection.unwritable:
            del self._connections[connection.key]
            self._queue.pop(connection, None)
            self._orphans.add(connection)
        else:
            self._drop(connection)

    # --- to the guest ---

    def fill(self, ring: DescriptorRing) -> None:
        """Put what there is into the guest's buffers, each connection in turn. Raises Violation."""
        room = ring.waiting
        while room and self._resets:
            self._put(ring, *self._resets.popleft(), packet.RST, 0)
            room -= 1
        while room and self._queue:
            connection, _ = self._queue.popitem(last=False)
            room -= self._serve(ring, connection, room)
            self._attend(connection)

    def _serve(self, ring: DescriptorRing, connection: VsockConnection, room: int) -> int:
        """Return the number of chains used."""
        used = self._tell(ring, connection, room)
        if used < room and connection.wants_data:
            used += self._stream(ring, connection, room - used)
        if used < room and connection.lost:
            self._tell_op(ring, connection, packet.SHUTDOWN, NO_RECEIVE | NO_SEND)
            self._abort(connection)
            used += 1
        return used

    def _tell(self, ring: DescriptorRing, connection: VsockConnection, room: int) -> int:
        used = 0
        while connection.due and used < room:
            due = connection.due & -connection.due  # the lowest bit comes first
            connection.due &= ~due
            if due == REQUEST_DUE:
                connection.requested = True
                self._tell_op(ring, connection, packet.REQUEST)
            elif due == RESPONSE_DUE:
                self._tell_op(ring, connection, packet.RESPONSE)
            elif due == CREDIT_DUE:
                self._tell_op(ring, connection, packet.CREDIT_UPDATE)
            elif due == ASK_DUE:
                self._tell_op(ring, connection, packet.CREDIT_REQUEST)
            elif due == SHUTDOWN_DUE:
                self._tell_op(ring, connection, packet.SHUTDOWN, connection.shut)
            used += 1
        return used

    def _tell_op(
        self, ring: DescriptorRing, connection: VsockConnection, op: int, flags: int = 0
    ) -> None:
        connection.told = connection.forwarded
        self._put(
            ring,
            connection.host_port,
            connection.guest_port,
            op,
            flags,
            connection.window,
            connection.forwarded,
        )

    def _put(
        self,
        ring: DescriptorRing,
        host_port: int,
        guest_port: int,
        op: int,
        flags: int,
        buf_alloc: int = 0,
        fwd_cnt: int = 0,
    ) -> None:
        chain = _taken(ring)
        packet.write(
            chain,
            HEADER.pack(
                *(HOST_CID, self._cid, host_port, guest_port, 0, STREAM, op, flags),
                *(buf_alloc, fwd_cnt),
            ),
        )
        ring.put(chain.head, packet.SIZE)

    def _stream(self, ring: DescriptorRing, connection: VsockConnection, room: int) -> int:
        """Read from the unix socket straight into the guest's buffers; the chains used."""
        left = connection.credit
        if not left:
            connection.ask()
            return 0
        chains: list[tuple[DescriptorChain, int]] = []
        buffers: list[memoryview] = []
        while left and len(chains) < min(room, connection.appetite) and len(buffers) < _VECTORS:
            chain = _taken(ring)
            size = min(chain.size - packet.SIZE, MAX_DATA, left)
            if len(chain.parts) == 1:
                buffers.append(chain.parts[0][packet.SIZE : packet.SIZE + size])
            else:
                buffers += packet.cut(chain.parts, packet.SIZE, size)
            chains.append((chain, size))
            left -= size
        used = self._fill_headers(ring, connection, chains, connection.read(buffers))
        ring.give_back(len(chains) - used)
        # A lone message should not cost the look at 32 chains, nor a stream a read for each.
        connection.appetite = min(4 * len(chains), _APPETITE) if used == len(chains) else 1
        return used

    def _fill_headers(
        self,
        ring: DescriptorRing,
        connection: VsockConnection,
        chains: list[tuple[DescriptorChain, int]],
        count: int,
    ) -> int:
        used = 0
        connection.told = connection.forwarded
        for chain, size in chains:
            if not count:
                break
            length = min(size, count)
            header = HEADER.pack(
                *(HOST_CID, self._cid, connection.host_port, connection.guest_port),
                *(length, STREAM, packet.RW, 0, connection.window, connection.forwarded),
            )
            packet.write(chain, header)
            ring.put(chain.head, packet.SIZE + length)
            count -= length
            used += 1
        return used


def _taken(ring: DescriptorRing) -> DescriptorChain:
    chain = ring.take()
    if chain.size <= packet.SIZE:
        raise Violation(f"a receive buffer of {chain.size} bytes")
    return chain
