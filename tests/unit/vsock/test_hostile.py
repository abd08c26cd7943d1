"""A guest and a VMM at their worst: the device goes on, or ends with a Violation; nothing else."""

import gc
import os
import socket
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.vsock.vmm import HIGH, LOW_USER, MIB, QUEUE, SEND, SIZE, Vmm

from agentd.vsock import packet
from agentd.vsock.connection import VsockConnection
from agentd.vsock.errors import Violation
from agentd.vsock.muxer import MuxerLimits

Step = Callable[[Vmm], None]
FEW = MuxerLimits(connections=8, half_open=4)
EDGE = st.sampled_from([0, 1, 2, 43, 44, 45, SIZE - 1, SIZE, 0x7FFF, 0xFFFF])
U16 = st.one_of(EDGE, st.integers(0, 0xFFFF))
U32 = st.one_of(
    EDGE, st.sampled_from([1 << 30, (1 << 31) - 1, 0xFFFFFFFF]), st.integers(0, 2**32 - 1)
)
U64 = st.one_of(
    EDGE,
    U32,
    st.sampled_from([HIGH, HIGH + MIB - 1, LOW_USER, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
PORTS = st.sampled_from([7, 8, 1 << 30, (1 << 30) + 1, 5000])
OPS = st.one_of(st.integers(0, 9), U16)


def hostile_packet(op: int, host: int, guest: int, size: int, over: dict[str, int]) -> Step:
    def step(vmm: Vmm) -> None:
        vmm.send(op, host, guest, b"d" * size, **over)

    return step


PACKETS = st.builds(
    hostile_packet,
    OPS,
    PORTS,
    PORTS,
    st.sampled_from([0, 1, 100, 65_000]),
    st.fixed_dictionaries(
        {},
        optional={
            "src_cid": U64,
            "dst_cid": U64,
            "length": U32,
            "kind": U16,
            "flags": U32,
            "buf_alloc": U32,
            "fwd_cnt": U32,
        },
    ),
)


def scribble(place: int, content: bytes) -> Step:
    """Over descriptors and rings of either queue, then kick both."""

    def step(vmm: Vmm) -> None:
        vmm.low[place : place + len(content)] = content
        vmm.kick(0)
        vmm.kick(1)
        vmm.step()

    return step


RING_PLACES = st.builds(
    lambda queue, table, offset: queue * QUEUE + table + offset,
    st.integers(0, 1),
    st.sampled_from([0x0000, 0x4000, 0x8000]),
    st.integers(0, 600),
)
SCRIBBLES = st.builds(scribble, RING_PLACES, st.binary(min_size=1, max_size=64))


def chain(address: int, length: int, flags: int, following: int, queue: int) -> Step:
    def step(vmm: Vmm) -> None:
        head = vmm.queues[queue].available[1] % SIZE
        vmm.queues[queue].describe(head, address, length, flags, following)
        vmm.queues[queue].offer(head)
        vmm.kick(queue)
        vmm.step()

    return step


FLAGS = st.one_of(st.sampled_from([0, 1, 2, 3, 4]), U16)
CHAINS = st.builds(chain, U64, U32, FLAGS, U16, st.integers(0, 1))


def request(number: int, payload: bytes, count: int) -> Step:
    def step(vmm: Vmm) -> None:
        vmm.request(number, payload, [vmm.file, vmm.kicks[0]][:count])

    return step


WORDS = st.lists(U64, max_size=6).map(lambda words: struct.pack(f"<{len(words)}Q", *words))
SHORTS = st.lists(U32, max_size=6).map(lambda words: struct.pack(f"<{len(words)}I", *words))
REQUESTS = st.builds(
    request,
    st.one_of(st.integers(0, 45), U32),
    st.one_of(WORDS, SHORTS, st.binary(max_size=600)),
    st.integers(0, 2),
)


def client(line: bytes) -> Step:
    def step(vmm: Vmm) -> None:
        sock = vmm.client()
        CLIENTS.append(sock)
        with suppress(OSError):
            sock.send(line)
        vmm.step()

    return step


CLIENTS: list[socket.socket] = []
LINES = st.one_of(st.just(b"CONNECT 5000\nhello"), st.binary(max_size=40))
HOSTS = st.one_of(
    st.builds(client, LINES),
    st.just(lambda vmm: CLIENTS and CLIENTS.pop().close()),
    st.just(lambda vmm: CLIENTS and CLIENTS[0].shutdown(socket.SHUT_WR)),
)


def run(steps: list[Step]) -> None:
    """Ends as it may; then nothing is left, and the device did no more than it may."""
    before = len(os.listdir("/proc/self/fd"))
    with tempfile.TemporaryDirectory() as folder, Vmm(folder, FEW) as vmm:
        vmm.start()
        with vmm.listening(7):
            CLIENTS.append(vmm.client(b"CONNECT 5000\n"))
            vmm.send(packet.REQUEST, 7, 8)
            try:
                for step in steps:
                    with suppress(IndexError, KeyError, OSError):  # the driver's own confusion
                        step(vmm)
                        vmm.step()
            except Violation as violation:
                assert str(violation)
    while CLIENTS:
        CLIENTS.pop().close()
    assert len(os.listdir("/proc/self/fd")) == before


BOUNDED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@BOUNDED
@given(st.lists(st.one_of(PACKETS, HOSTS), max_size=12))
def test_any_packets(steps: list[Step]) -> None:
    run(steps)


@BOUNDED
@given(st.lists(st.one_of(SCRIBBLES, CHAINS, PACKETS, HOSTS), max_size=8))
def test_any_rings(steps: list[Step]) -> None:
    run(steps)


@BOUNDED
@given(st.lists(st.one_of(REQUESTS, PACKETS, HOSTS), max_size=6))
def test_any_requests(steps: list[Step]) -> None:
    run(steps)


@given(st.binary(max_size=200))
@BOUNDED
def test_any_bytes_from_the_vmm(data: bytes) -> None:
    def step(vmm: Vmm) -> None:
        vmm.raw(data)
        vmm.control.shutdown(socket.SHUT_WR)
        vmm.device.run()

    if data:
        run([step])


def test_a_guest_that_takes_no_answers_costs_a_bounded_amount(vmm: Vmm) -> None:
    vmm.queues[0].done()
    for number in range(5000):
        vmm.send(packet.RW, 9, number)  # each of no connection
    answers = 0
    while found := vmm.receive():
        answers += len(found)
    assert answers <= 2048 + SIZE


def test_streams_that_come_and_go_unanswered_leave_nothing(vmm: Vmm) -> None:
    with vmm.listening(7) as listener:
        for number in range(1000):
            vmm.send(packet.REQUEST, 7, number)  # the guest has no buffer for the answers after 64
            vmm.send(packet.RST, 7, number)
            listener.accept()[0].close()
    gc.collect()
    assert sum(isinstance(thing, VsockConnection) for thing in gc.get_objects()) == 0


def test_a_receive_buffer_too_small_for_a_packet_ends_the_device(vmm: Vmm) -> None:
    vmm.receive()
    vmm.stop()
    vmm.wipe()
    vmm.restart()
    vmm.post(1, size=packet.SIZE)
    with vmm.client(b"CONNECT 1\n"), pytest.raises(Violation, match="a receive buffer of 44 bytes"):
        vmm.step(2)


def test_answers_to_answers_do_not_go_round(vmm: Vmm) -> None:
    vmm.send(packet.RST, 9, 9)
    assert vmm.receive() == []


@pytest.mark.parametrize("over", [{"src_cid": 43}, {"dst_cid": 3}, {"dst_cid": 1}])
def test_packets_of_or_for_others_are_dropped(vmm: Vmm, over: dict[str, int]) -> None:
    with vmm.listening(7):
        vmm.send(packet.REQUEST, 7, 1, **over)
        assert vmm.receive() == []


def test_datagrams_are_refused(vmm: Vmm) -> None:
    with vmm.listening(7):
        vmm.send(packet.REQUEST, 7, 1, kind=2)
        assert [item.op for item in vmm.receive()] == [packet.RST]


@pytest.mark.parametrize(
    ("op", "flags"),
    [
        (packet.RW, 0),
        (packet.CREDIT_UPDATE, 0),
        (packet.CREDIT_REQUEST, 0),
        (packet.SHUTDOWN, packet.NO_SEND),
        (packet.REQUEST, 0),
        (0, 0),
        (8, 0),
    ],
)
def test_before_it_answered_a_guest_may_say_nothing(vmm: Vmm, op: int, flags: int) -> None:
    with vmm.client(b"CONNECT 5\n") as sock:
        [asked] = vmm.receive()
        vmm.send(op, asked.host_port, 5, flags=flags)
        assert [item.op for item in vmm.receive()] == [packet.RST]
        assert sock.recv(8) == b""


def test_before_it_was_asked_a_guest_may_not_answer(vmm: Vmm) -> None:
    vmm.stop()
    vmm.wipe()
    vmm.restart()  # no receive buffers: the request is still here
    with vmm.client(b"CONNECT 5\n") as sock:
        vmm.step(2)
        vmm.send(packet.RESPONSE, 1 << 30, 5)
        assert sock.recv(8) == b""


@pytest.mark.parametrize("op", [packet.RESPONSE, packet.REQUEST, 0, 99])
def test_a_stream_that_runs_takes_no_other_answer(vmm: Vmm, op: int) -> None:
    sock, number = vmm.connected()
    with sock:
        vmm.send(op, number, 5000)
        assert [item.op for item in vmm.receive()] == [packet.RST]
        assert sock.recv(8) == b""


def test_data_after_the_guests_own_end_resets(vmm: Vmm) -> None:
    sock, number = vmm.connected()
    with sock:
        vmm.send(packet.SHUTDOWN, number, 5000, flags=packet.NO_SEND)
        vmm.send(packet.RW, number, 5000, b"more")
        assert [item.op for item in vmm.receive()] == [packet.RST]
        assert sock.recv(8) == b""


def test_the_device_ends_and_says_over_what(vmm: Vmm) -> None:
    sock, _ = vmm.connected()
    with sock:
        vmm.queues[SEND].available[1] = 1000
        vmm.kick(SEND)
        with pytest.raises(Violation, match="chains are available in a virtqueue of 64"):
            vmm.device.run()
        assert sock.recv(1) == b""
        assert vmm.control.recv(1) == b""
