"""Streams end to end: a client's unix socket on one side, the guest's rings on the other."""

import os
import random
import socket
from contextlib import suppress

import pytest
from tests.unit.vsock.vmm import MIB, RECEIVE, SEND, SIZE, WINDOW, Vmm, closed

from agentd.vsock import packet

PORT = 5000
PATTERN = random.Random(7).randbytes(3 * MIB // 2)  # noqa: S311


def test_a_client_connects_and_gets_the_number_of_its_port(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        assert number == 1 << 30
    other, number = vmm.connected(PORT)
    with other:
        assert number == (1 << 30) + 1


def test_both_directions_arrive_whole(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        sock.setblocking(False)
        got, sent, there = bytearray(), 0, bytearray()
        up = 0
        while len(got) < len(PATTERN) or len(there) < len(PATTERN):
            if sent < len(PATTERN):
                with suppress(BlockingIOError):
                    sent += sock.send(PATTERN[sent : sent + 100_000])
            for item in vmm.receive():
                got += item.data
            alloc, forwarded = vmm.peer[number, PORT]
            room = alloc - (up - forwarded)
            size = min(room, 60_000, len(PATTERN) - up)
            if size:
                vmm.send(packet.RW, number, PORT, PATTERN[up : up + size])
                up += size
            else:  # all sent; say what was received
                vmm.send(packet.CREDIT_UPDATE, number, PORT)
            with suppress(BlockingIOError):
                there += sock.recv(1 << 20)
        assert got == PATTERN
        assert there == PATTERN


def test_the_device_sends_no_more_than_the_guest_has_room_for(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        vmm.send(packet.CREDIT_UPDATE, number, PORT, buf_alloc=10_000)
        sock.sendall(b"x" * 50_000)
        data = [item for _ in range(8) for item in vmm.receive()]
        assert sum(len(item.data) for item in data) == 10_000
        # At a standstill it asks, once.
        assert [item.op for item in data if item.op != packet.RW] == [packet.CREDIT_REQUEST]
        vmm.send(packet.CREDIT_UPDATE, number, PORT, buf_alloc=10_000)
        more = [item for _ in range(8) for item in vmm.receive()]
        assert sum(len(item.data) for item in more) == 10_000


def test_credit_that_a_guest_overstates_stops_only_its_own_stream(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    other, second = vmm.connected(PORT)
    with sock, other:
        vmm.send(packet.CREDIT_UPDATE, number, PORT, fwd_cnt=123_456)  # never sent
        sock.sendall(b"held")
        other.sendall(b"goes")
        data = [item for item in vmm.receive() if item.op == packet.RW]
        assert [(item.host_port, item.data) for item in data] == [(second, b"goes")]


def test_a_client_that_does_not_read_stops_the_guest_at_its_window(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        alloc, _ = vmm.peer[number, PORT]
        assert alloc == 256 << 10
        sent = 0
        while True:
            alloc, forwarded = vmm.peer[number, PORT]
            size = min(alloc - (sent - forwarded), 65_536, len(PATTERN) - sent)
            if not size:
                break
            vmm.send(packet.RW, number, PORT, PATTERN[sent : sent + size])
            sent += size
            vmm.receive()
        assert sent < MIB  # what the socket and the window hold
        got = bytearray()
        while len(got) < sent:
            got += sock.recv(1 << 20)
            vmm.step()
        assert got == PATTERN[:sent]
        [update] = [item for item in vmm.receive() if item.op == packet.CREDIT_UPDATE]
        assert update.fwd_cnt == sent


def test_a_guest_whose_own_buffer_is_small_is_told_in_time(vmm: Vmm) -> None:
    """Linux sends no more ahead of what it knows to be taken than its own buffer holds."""
    own = 64 << 10
    sock, number = vmm.connected(PORT)
    with sock:
        vmm.send(packet.CREDIT_UPDATE, number, PORT, buf_alloc=own)
        for turn in range(1, 9):
            vmm.send(packet.RW, number, PORT, bytes(own // 2), buf_alloc=own)
            vmm.receive()
            assert len(sock.recv(own // 2, socket.MSG_WAITALL)) == own // 2
            vmm.step()
            vmm.receive()
            _, forwarded = vmm.peer[number, PORT]
            assert forwarded == turn * own // 2


def test_a_guest_that_sends_more_than_its_window_is_reset(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        for _ in range(20):
            vmm.send(packet.RW, number, PORT, b"x" * 65_536)
        assert vmm.receive()[-1].op == packet.RST
        assert closed(sock)


def test_a_host_half_close_is_a_shutdown_and_the_answer_still_comes(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        data, shutdown = vmm.receive()
        assert data.data == b"question"
        assert (shutdown.op, shutdown.flags) == (packet.SHUTDOWN, packet.NO_SEND)
        vmm.send(packet.RW, number, PORT, b"answer")
        assert sock.recv(64) == b"answer"
        vmm.send(packet.SHUTDOWN, number, PORT, flags=3)
        assert sock.recv(64) == b""
        assert [item.op for item in vmm.receive()] == [packet.RST]


def test_a_guest_half_close_is_an_end_and_the_client_may_go_on(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        vmm.send(packet.RW, number, PORT, b"all")
        vmm.send(packet.SHUTDOWN, number, PORT, flags=packet.NO_SEND)
        assert sock.recv(64) == b"all"
        assert sock.recv(64) == b""
        sock.sendall(b"thanks")
        assert [item.data for item in vmm.receive()] == [b"thanks"]
        sock.shutdown(socket.SHUT_WR)  # now neither side has anything to say
        ops = [item.op for item in vmm.receive()]
        assert set(ops[:-1]) == {packet.SHUTDOWN}
        assert ops[-1] == packet.RST


def test_a_guest_that_will_not_receive_stops_the_client(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        vmm.send(packet.SHUTDOWN, number, PORT, flags=packet.NO_RECEIVE)
        with pytest.raises(BrokenPipeError):
            sock.sendall(b"x")
        vmm.send(packet.RW, number, PORT, b"still")
        assert sock.recv(64) == b"still"


def test_a_client_that_closes_is_told_after_its_data(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        sock.sendall(b"last words")
    data, shutdown, reset = vmm.receive()
    assert data.data == b"last words"
    assert (shutdown.op, shutdown.flags, reset.op) == (packet.SHUTDOWN, 3, packet.RST)
    vmm.send(packet.RW, number, PORT, b"too late")
    assert [item.op for item in vmm.receive()] == [packet.RST]


def test_an_idle_client_that_closes_is_told_at_once(vmm: Vmm) -> None:
    sock, _ = vmm.connected(PORT)
    sock.close()
    assert [item.op for item in vmm.receive()] == [packet.SHUTDOWN, packet.RST]


def test_a_client_that_closes_without_reading_is_gone_too(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    vmm.send(packet.RW, number, PORT, b"never read")
    sock.close()
    assert vmm.receive()[-1].op == packet.RST


def test_what_a_guest_sent_before_it_closed_and_reset_still_arrives(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        sent = 0
        for _ in range(6):
            alloc, forwarded = vmm.peer[number, PORT]
            size = min(alloc - (sent - forwarded), 65_536)
            vmm.send(packet.RW, number, PORT, PATTERN[sent : sent + size])
            sent += size
            vmm.receive()
        vmm.send(packet.SHUTDOWN, number, PORT, flags=3)
        vmm.send(packet.RST, number, PORT)
        vmm.got.clear()
        got = bytearray()
        while data := sock.recv(1 << 20):
            got += data
            vmm.step()
        assert got == PATTERN[:sent]
        assert vmm.receive() == []  # the guest, which forgot it, is told nothing


def test_what_a_client_sent_after_the_guests_reset_goes_nowhere(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        sock.setblocking(False)
        for _ in range(2):  # until the guest has no buffer left
            sock.send(PATTERN[:150_000])
            for _ in range(4):
                vmm.receive(post=False)
        sent = 0
        while sent < 320_000:  # and the client's socket is full
            vmm.send(packet.RW, number, PORT, b"x" * 32_000)
            sent += 32_000
        vmm.send(packet.RST, number, PORT)
        vmm.post(SIZE)
        assert vmm.receive() == []
        got = 0
        with pytest.raises(ConnectionResetError):  # for its own data that nobody read
            while data := sock.recv(1 << 20):
                got += len(data)
                vmm.step()
        assert got == sent


def test_a_reset_by_the_guest_ends_the_client(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        vmm.send(packet.RST, number, PORT)
        assert sock.recv(1) == b""
        assert vmm.receive() == []


def test_a_port_nobody_listens_on_closes_the_client(vmm: Vmm) -> None:
    with vmm.client(b"CONNECT 9\n") as sock:
        [request] = vmm.receive()
        vmm.send(packet.RST, request.host_port, 9)
        assert sock.recv(64) == b""


def test_a_guest_connects_to_the_hosts_socket(vmm: Vmm) -> None:
    with vmm.listening(7) as listener, vmm.accepted(listener, 7) as sock:
        vmm.send(packet.RW, 7, 1234, b"from inside")
        assert sock.recv(64) == b"from inside"
        sock.sendall(b"from outside")
        assert [item.data for item in vmm.receive()] == [b"from outside"]


def test_a_guests_connection_to_nothing_is_reset(vmm: Vmm) -> None:
    vmm.send(packet.REQUEST, 8, 1234)
    assert [item[:3] for item in vmm.receive()] == [(8, 1234, packet.RST)]


def test_a_second_request_for_the_same_stream_resets_it(vmm: Vmm) -> None:
    with vmm.listening(7) as listener, vmm.accepted(listener, 7) as sock:
        vmm.send(packet.REQUEST, 7, 1234)
        assert [item.op for item in vmm.receive()] == [packet.RST]
        assert sock.recv(1) == b""


def test_bulk_streams_share_the_guests_buffers(vmm: Vmm) -> None:
    socks = [vmm.connected(PORT)[0] for _ in range(4)]
    for sock in socks:
        sock.setblocking(False)
        sock.send(b"x" * 200_000)
    counts: dict[int, int] = {}
    for _ in range(12):
        for item in vmm.receive():
            counts[item.host_port] = counts.get(item.host_port, 0) + len(item.data)
    for sock in socks:
        sock.close()
    assert len(counts) == 4
    assert max(counts.values()) <= 2 * min(counts.values())


def test_nothing_is_lost_when_the_guest_posts_no_buffers_for_a_while(vmm: Vmm) -> None:
    sock, _ = vmm.connected(PORT)
    with sock:
        sock.setblocking(False)
        got = []
        for start in (0, 150_000):
            assert sock.send(PATTERN[start : start + 150_000]) == 150_000
            got += [item for _ in range(4) for item in vmm.receive(post=False)]
        assert sum(len(item.data) for item in got) < 300_000
        assert not vmm.queues[RECEIVE].chains
        vmm.post(SIZE)
        got += vmm.receive()
        assert b"".join(item.data for item in got) == PATTERN[:300_000]


def test_a_restart_of_the_driver_ends_what_the_guest_knew_and_keeps_what_waits(vmm: Vmm) -> None:
    sock, _ = vmm.connected(PORT)
    vmm.stop()
    with sock, vmm.client(b"CONNECT 5001\n") as waiting:
        vmm.step()
        vmm.wipe()
        vmm.restart()
        assert sock.recv(1) == b""
        vmm.post(SIZE)
        assert [item[1:3] for item in vmm.receive()] == [(5001, packet.REQUEST)]
        assert not closed(waiting)


def test_a_pause_of_the_machine_keeps_the_streams(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        bases = vmm.stop()
        sock.sendall(b"meanwhile")
        assert vmm.receive() == []
        vmm.restart(bases)
        assert [item.data for item in vmm.receive()] == [b"meanwhile"]
        vmm.send(packet.RW, number, PORT, b"and back")
        assert sock.recv(64) == b"and back"


def test_memory_may_be_mapped_anew_while_streams_run(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        vmm.memory_table()
        sock.sendall(b"after")
        assert [item.data for item in vmm.receive()] == [b"after"]
        vmm.send(packet.RW, number, PORT, b"too")
        assert sock.recv(64) == b"too"


def test_indices_run_over(vmm: Vmm) -> None:
    bases = vmm.stop()
    assert bases == [0, 0]
    vmm.wipe()
    for queue in vmm.queues:
        queue.seen = queue.available[1] = queue.used_index[1] = 0xFFF0
    vmm.restart([0xFFF0, 0xFFF0])
    vmm.post(SIZE)
    sock, number = vmm.connected(PORT)
    with sock:
        for turn in range(40):
            sock.sendall(b"%d" % turn)
            assert [item.data for item in vmm.receive()] == [b"%d" % turn]
            vmm.send(packet.RW, number, PORT, b"%d" % turn)
            assert sock.recv(64) == b"%d" % turn
    assert vmm.queues[SEND].used_index[1] < 0xFFF0


def test_every_completion_is_signalled(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        for fd in vmm.calls:
            os.eventfd_read(fd)
        for queue in vmm.queues:
            queue.available[0] = 1  # a guest that would rather not be interrupted
        sock.sendall(b"x")
        vmm.receive()
        vmm.send(packet.CREDIT_UPDATE, number, PORT)
        assert [os.eventfd_read(fd) for fd in vmm.calls] == [1, 1]
        assert vmm.queues[RECEIVE].used[0] & 0xFFFF == 0  # and kicks are never suppressed


def test_a_guest_with_no_room_at_all_costs_nothing(vmm: Vmm) -> None:
    sock, number = vmm.connected(PORT)
    with sock:
        vmm.send(packet.CREDIT_UPDATE, number, PORT, buf_alloc=0)
        sock.sendall(b"x")
        vmm.receive()
        vmm.step()
        assert vmm.device.turn(0.01)  # it waits: a busy loop would find something to do
        vmm.send(packet.CREDIT_UPDATE, number, PORT, buf_alloc=WINDOW)
        assert [item.data for item in vmm.receive()] == [b"x"]
