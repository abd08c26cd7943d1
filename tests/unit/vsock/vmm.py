"""A VMM and a guest's driver in one, without either: real sockets, memory and rings."""

import array
import mmap
import os
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from agentd.vsock import packet, wire
from agentd.vsock.device import Device
from agentd.vsock.errors import Violation
from agentd.vsock.muxer import MuxerLimits

CID = 42
SIZE = 64  # a queue's entries
RECEIVE, SEND = 0, 1
BUFFER = 4096
WINDOW = 1 << 20  # what the guest has room for, by stream

MIB = 1 << 20
LOW, HIGH = 0, 4 << 30  # two regions of guest memory: rings in one, buffers in the other
LOW_USER, HIGH_USER = 0x7F00_0000_0000, 0x7F10_0000_0000
DESCRIPTORS, AVAILABLE, USED = 0x0000, 0x4000, 0x8000
QUEUE = 0x10000  # from one queue's rings to the next one's
NEXT, WRITE, INDIRECT = 1, 2, 4


class Got(NamedTuple):
    """A packet that the guest received."""

    host_port: int
    guest_port: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int
    data: bytes


class Queue:
    """The driver's half of a virtqueue; each entry has a buffer of its own."""

    def __init__(self, low: memoryview, number: int) -> None:
        start = number * QUEUE
        self.start = start
        self.descriptors = low[start + DESCRIPTORS : start + DESCRIPTORS + 16 * SIZE]
        self.available = low[start + AVAILABLE : start + AVAILABLE + 4 + 2 * SIZE].cast("H")
        self.used_index = low[start + USED : start + USED + 4].cast("H")
        self.used = low[start + USED : start + USED + 4 + 8 * SIZE].cast("I")
        self.seen = 0
        self.free = list(range(SIZE))
        self.chains: dict[int, list[int]] = {}

    def release(self) -> None:
        for view in (self.descriptors, self.available, self.used_index, self.used):
            view.release()

    def describe(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        struct.pack_into("<QIHH", self.descriptors, 16 * index, address, length, flags, following)

    def add(self, parts: Sequence[tuple[int, int]], flags: int = 0) -> int:
        """Make a chain available; its head."""
        taken = [self.free.pop() for _ in parts]
        for place, (index, (address, length)) in enumerate(zip(taken, parts, strict=True)):
            last = place == len(parts) - 1
            following = 0 if last else taken[place + 1]
            self.describe(index, address, length, flags | (0 if last else NEXT), following)
        self.chains[taken[0]] = taken
        self.offer(taken[0])
        return taken[0]

    def offer(self, head: int) -> None:
        self.available[2 + self.available[1] % SIZE] = head
        self.available[1] = (self.available[1] + 1) & 0xFFFF

    def done(self) -> list[tuple[int, int]]:
        """Heads and lengths that the device has put since the last look."""
        found = []
        while self.seen != self.used_index[1]:
            slot = 1 + 2 * (self.seen % SIZE)
            head, length = self.used[slot], self.used[slot + 1]
            self.free += self.chains.pop(head)
            found.append((head, length))
            self.seen = (self.seen + 1) & 0xFFFF
        return found


#: Of which no time limit ends a test's own on a busy machine.
PATIENT = MuxerLimits(line_seconds=600.0, request_seconds=600.0)


class Vmm:
    """``device`` runs only in step(), in the test's own thread."""

    def __init__(self, folder: Any, limits: MuxerLimits = PATIENT) -> None:
        self.path = f"{folder}/v"
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(2048)
        self.control, theirs = socket.socketpair()
        self.control.settimeout(120)
        self.device = Device(theirs, CID, self.listener, self.path, limits)
        self.file = os.memfd_create("ram")
        os.ftruncate(self.file, 2 * MIB)
        self.map = mmap.mmap(self.file, 2 * MIB)
        self.ram = memoryview(self.map)
        self.low, self.high = self.ram[:MIB], self.ram[MIB:]
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.queues = [Queue(self.low, number) for number in range(2)]
        self.got: list[Got] = []
        self.streams: dict[tuple[int, int], list[int]] = {}  # sent, received, of the guest's
        self.peer: dict[tuple[int, int], tuple[int, int]] = {}  # buf_alloc, fwd_cnt, of the host's

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.device.close()
        for queue in self.queues:
            queue.release()
        for view in (self.low, self.high, self.ram):
            view.release()
        self.map.close()
        for fd in (self.file, *self.kicks, *self.calls):
            os.close(fd)
        self.control.close()

    # --- vhost-user ---

    def request(self, number: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        self.raw(struct.pack("=III", number, wire.VERSION, len(payload)) + payload, fds)
        self.step()

    def raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.control.sendmsg([data], rights)

    def ask(self, number: int, payload: bytes = b"") -> bytes:
        self.request(number, payload)
        request, flags, size = struct.unpack("=III", self.control.recv(12))
        assert (request, flags) == (number, wire.VERSION | wire.REPLY)
        return self.control.recv(size) if size else b""

    def start(self) -> Self:
        """As QEMU does once the driver says DRIVER_OK; with receive buffers posted."""
        assert struct.unpack("=Q", self.ask(wire.GET_FEATURES))[0] == 1 << 32 | 1 << 30
        self.request(wire.SET_PROTOCOL_FEATURES, self.ask(wire.GET_PROTOCOL_FEATURES))
        self.request(wire.SET_OWNER)
        self.restart()
        self.post(SIZE)
        return self

    def restart(self, bases: Sequence[int] = (0, 0)) -> None:
        self.request(wire.SET_FEATURES, struct.pack("=Q", 1 << 32 | 1 << 30))
        self.memory_table()
        for number in range(2):
            self.configure(number, bases[number])
            self.request(wire.SET_VRING_KICK, struct.pack("=Q", number), [self.kicks[number]])
            self.request(wire.SET_VRING_CALL, struct.pack("=Q", number), [self.calls[number]])
        for number in range(2):
            self.request(wire.SET_VRING_ENABLE, struct.pack("=II", number, 1))

    def configure(self, number: int, base: int = 0) -> None:
        start = LOW_USER + number * QUEUE
        self.request(wire.SET_VRING_NUM, struct.pack("=II", number, SIZE))
        self.request(wire.SET_VRING_BASE, struct.pack("=II", number, base))
        places = (start + DESCRIPTORS, start + USED, start + AVAILABLE, 0)
        self.request(wire.SET_VRING_ADDR, struct.pack("=IIQQQQ", number, 0, *places))

    def memory_table(self) -> None:
        regions = struct.pack("=QQQQ", LOW, MIB, LOW_USER, 0)
        regions += struct.pack("=QQQQ", HIGH, MIB, HIGH_USER, MIB)
        payload = struct.pack("=II", 2, 0) + regions
        self.request(wire.SET_MEM_TABLE, payload, [self.file, self.file])

    def stop(self) -> list[int]:
        """The indices at which the queues stopped."""
        answers = [self.ask(wire.GET_VRING_BASE, struct.pack("=II", n, 0)) for n in range(2)]
        return [struct.unpack("=II", answer)[1] for answer in answers]

    def wipe(self) -> None:
        """A guest that boots again: no ring remembers anything."""
        self.low[:] = bytes(MIB)
        for queue in self.queues:
            queue.release()
        self.queues = [Queue(self.low, number) for number in range(2)]

    def step(self, turns: int = 1) -> None:
        for _ in range(turns):
            try:
                self.device.turn(0)
            except Violation:
                raise
            except Exception as error:  # not to be taken for one of this driver's own
                raise AssertionError("the device failed") from error

    # --- the guest's driver ---

    def kick(self, number: int) -> None:
        os.eventfd_write(self.kicks[number], 1)

    def post(self, count: int, size: int = BUFFER) -> None:
        """Receive buffers, each of two descriptors when there are enough."""
        queue = self.queues[RECEIVE]
        for _ in range(min(count, len(queue.free))):
            slot = queue.free[-1]
            queue.add([(HIGH + slot * BUFFER, size)], WRITE)
        self.kick(RECEIVE)

    def receive(self, *, post: bool = True) -> list[Got]:
        """Step, and take what the guest got; also kept in ``got``."""
        self.step(2)
        found = []
        for head, length in self.queues[RECEIVE].done():
            raw = bytes(self.high[head * BUFFER : head * BUFFER + length])
            fields = packet.HEADER.unpack_from(raw)
            src, dst, host_port, guest_port, size, kind, op, flags, alloc, fwd = fields
            assert (src, dst, kind, size) == (2, CID, 1, length - packet.SIZE)
            key = host_port, guest_port
            self.peer[key] = alloc, fwd
            self.streams.setdefault(key, [0, 0])[1] += size
            found.append(Got(host_port, guest_port, op, flags, alloc, fwd, raw[packet.SIZE :]))
        if post and found:
            self.post(len(found))
        self.got += found
        return found

    def send(
        self,
        op: int,
        host_port: int,
        guest_port: int,
        data: bytes = b"",
        flags: int = 0,
        **over: int,
    ) -> None:
        """A packet in one or two descriptors; ``over`` replaces fields of its header."""
        queue = self.queues[SEND]
        queue.done()
        if len(queue.free) < 2:
            self.step()
            queue.done()
        state = self.streams.setdefault((host_port, guest_port), [0, 0])
        fields = {
            "src_cid": CID,
            "dst_cid": 2,
            "src_port": guest_port,
            "dst_port": host_port,
            "length": len(data),
            "kind": 1,
            "op": op,
            "flags": flags,
            "buf_alloc": WINDOW,
            "fwd_cnt": state[1] & 0xFFFFFFFF,
        }
        header = packet.HEADER.pack(*(fields | over).values())
        state[0] += len(data)
        self.send_raw(header, data)

    def send_raw(self, header: bytes, data: bytes = b"") -> None:
        queue = self.queues[SEND]
        place = MIB // 2 + (queue.free[-1] % 4) * 0x12000  # the four last of them do not overlap
        self.high[place : place + len(header)] = header
        parts = [(HIGH + place, len(header))]
        if data:
            self.high[place + 0x100 : place + 0x100 + len(data)] = data
            parts.append((HIGH + place + 0x100, len(data)))
        queue.add(parts)
        self.kick(SEND)
        self.step()

    # --- the host's clients ---

    def client(self, line: bytes = b"") -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(self.path)
        sock.settimeout(120)
        if line:
            sock.sendall(line)
        return sock

    def connected(self, port: int = 5000) -> tuple[socket.socket, int]:
        """A stream that the host asked for and the guest took; the host's port."""
        sock = self.client(b"CONNECT %d\n" % port)
        [request] = [item for item in self.receive() if item.op == packet.REQUEST]
        assert request.guest_port == port
        self.send(packet.RESPONSE, request.host_port, port)
        assert sock.recv(64) == b"OK %d\n" % request.host_port
        return sock, request.host_port

    def accepted(self, listener: socket.socket, port: int, guest_port: int = 1234) -> socket.socket:
        """A stream that the guest asked for."""
        self.send(packet.REQUEST, port, guest_port)
        sock, _ = listener.accept()
        sock.settimeout(120)
        [response] = self.receive()
        assert response[:3] == (port, guest_port, packet.RESPONSE)
        return sock

    def listening(self, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(f"{self.path}_{port}")
        sock.listen(128)
        sock.settimeout(120)
        return sock


def closed(sock: socket.socket) -> bool:
    """Whether the far end closed it; data may still be there to read."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))
