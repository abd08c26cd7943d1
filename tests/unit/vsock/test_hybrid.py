"""Host clients: their one line, and how many of them at what state."""

import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.vsock.vmm import Vmm, closed

from agentd.vsock import packet
from agentd.vsock.hybrid import GuestPort
from agentd.vsock.muxer import MuxerLimits


def sockets() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Room for a few thousand."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("line", "port"),
    [
        (b"CONNECT 5000\n", 5000),
        (b"connect 5000\n", 5000),
        (b"CoNnEcT  5000 \r\n", 5000),
        (b"CONNECT 4294967295\n", 4294967295),
        (b"CONNECT 0 what follows\n", 0),
    ],
)
def test_a_line_names_a_port(vmm: Vmm, line: bytes, port: int) -> None:
    with vmm.client(line):
        assert [item[1:3] for item in vmm.receive()] == [(port, packet.REQUEST)]


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"CONNECT\n",
        b"CONNECT x\n",
        b"CONNECT -1\n",
        b"CONNECT +1\n",
        b"CONNECT 1_0\n",
        b"CONNECT 4294967296\n",
        b"CONNECT \xd9\xa1\n",
        b"GET / HTTP/1.1\r\n",
        b"x" * 32,
        b"CONNECT 5000                    \n",
    ],
)
def test_any_other_line_ends_the_client(vmm: Vmm, line: bytes) -> None:
    with vmm.client(line) as sock:
        assert vmm.receive() == []
        assert closed(sock)


def test_a_line_may_come_byte_by_byte(vmm: Vmm) -> None:
    with vmm.client() as sock:
        for byte in b"CONNECT 77\n":
            assert vmm.receive() == []
            sock.sendall(bytes([byte]))
        assert [item[1:3] for item in vmm.receive()] == [(77, packet.REQUEST)]


def test_what_follows_the_line_is_the_guests(vmm: Vmm) -> None:
    with vmm.client(b"CONNECT 77\nearly\nbird") as sock:
        [request] = vmm.receive()
        vmm.send(packet.RESPONSE, request.host_port, 77)
        assert [item.data for item in vmm.receive()] == [b"early\nbird"]
        assert sock.recv(64) == b"OK %d\n" % request.host_port


def test_a_client_that_goes_away_within_its_line_is_forgotten(vmm: Vmm) -> None:
    before = sockets()
    for line in (b"", b"CONN"):
        sock = vmm.client(line)
        vmm.step()
        sock.close()
        vmm.step()
    assert sockets() == before


def test_a_half_sent_line_has_a_deadline(tmp_path: Path) -> None:
    with Vmm(tmp_path, MuxerLimits(line_seconds=1.0)) as vmm, vmm.client(b"CONNECT 5") as sock:
        vmm.start()
        assert not closed(sock)
        time.sleep(1.1)
        vmm.step()
        assert closed(sock)


def test_an_unanswered_request_has_a_deadline(tmp_path: Path) -> None:
    with Vmm(tmp_path, MuxerLimits(request_seconds=1.0)) as vmm:
        vmm.start()
        with vmm.client(b"CONNECT 5\n") as sock:
            [request] = vmm.receive()
            time.sleep(1.1)
            assert [item[:3] for item in vmm.receive()] == [(request.host_port, 5, packet.RST)]
            assert closed(sock)
            vmm.send(packet.RESPONSE, request.host_port, 5)  # too late
            assert [item.op for item in vmm.receive()] == [packet.RST]


def test_without_a_guest_a_request_waits_until_its_deadline(tmp_path: Path) -> None:
    with (
        Vmm(tmp_path, MuxerLimits(request_seconds=1.0)) as vmm,
        vmm.client(b"CONNECT 5\n") as sock,
    ):
        vmm.step()
        assert not closed(sock)
        while not closed(sock):
            vmm.device.turn()  # wakes by itself


def test_a_guest_that_starts_meanwhile_gets_the_request(tmp_path: Path) -> None:
    with Vmm(tmp_path) as vmm, vmm.client(b"CONNECT 5\n"):
        vmm.step()
        vmm.start()
        assert [item[1:3] for item in vmm.receive()] == [(5, packet.REQUEST)]


def test_a_client_that_gives_up_before_the_answer(vmm: Vmm) -> None:
    sock = vmm.client(b"CONNECT 5\n")
    vmm.receive()
    sock.close()
    assert [item.op for item in vmm.receive()] == [packet.RST]


@pytest.mark.usefixtures("descriptors")
def test_a_thousand_half_open_clients_cost_a_bounded_amount(vmm: Vmm) -> None:
    before = sockets()
    flood = [vmm.client(b"CONNECT") for _ in range(1000)]
    try:
        vmm.step(40)
        assert sockets() - before - 1000 == MuxerLimits().half_open
        assert sum(map(closed, flood)) == 1000 - MuxerLimits().half_open
        sock, _ = vmm.connected()  # and one who knows what it wants is served
        sock.close()
    finally:
        for sock in flood:
            sock.close()


@pytest.mark.usefixtures("descriptors")
def test_connections_are_limited_from_both_sides(vmm: Vmm) -> None:
    clients: list[socket.socket] = []
    try:
        for _ in range(1100):
            clients.append(vmm.client(b"CONNECT 5\n"))
            vmm.receive()
        assert sum(item.op == packet.REQUEST for item in vmm.got) == 1023
        assert sum(map(closed, clients)) == 1100 - 1023
        with vmm.listening(7):
            vmm.send(packet.REQUEST, 7, 1)
            assert [item.op for item in vmm.receive()] == [packet.RST]
        clients.pop(0).close()
        vmm.receive()
        sock, _ = vmm.connected()
        sock.close()
    finally:
        for client in clients:
            client.close()


def test_without_descriptors_the_backlog_waits(vmm: Vmm) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with vmm.client(b"CONNECT 5\n"):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (sockets() - 1, hard))
            vmm.step(3)
            turns, until = 0, time.monotonic() + 0.05
            while time.monotonic() < until:
                vmm.device.turn(0.05)
                turns += 1
            assert turns < 20  # it waits, where a busy loop would take thousands
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert vmm.got == []
        time.sleep(0.11)
        assert [item.op for item in vmm.receive()] == [packet.REQUEST]


def test_a_full_backlog_refuses_the_guest_without_waiting(vmm: Vmm) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{vmm.path}_7")
        listener.listen(0)
        for number in range(3):
            vmm.send(packet.REQUEST, 7, number)
        ops = [item.op for item in vmm.receive()]
        assert sorted(ops) == [packet.RESPONSE, packet.RST, packet.RST]


def test_without_a_path_the_guest_reaches_nothing() -> None:
    assert GuestPort(None).dial(5) is None


def test_a_port_may_have_a_place_of_its_own(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{tmp_path}/place")
        listener.listen()
        place = os.open(f"{tmp_path}/place", os.O_PATH)
        guest = GuestPort(None, {1019: f"/proc/self/fd/{place}"})
        sock = guest.dial(1019)
        assert sock is not None
        with sock, listener.accept()[0] as taken:
            taken.sendall(b"x")
            assert sock.recv(1) == b"x"
        assert guest.dial(1018) is None
        os.close(place)


def test_what_the_guest_dials_leaves_the_host_its_share(tmp_path: Path) -> None:
    limits = MuxerLimits(connections=6, dialled=4)
    with Vmm(tmp_path, limits) as vmm, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{vmm.path}_7")
        listener.listen(64)
        vmm.start()
        for number in range(5):
            vmm.send(packet.REQUEST, 7, number)
        ops = [item.op for item in vmm.receive()]
        assert sorted(ops) == [packet.RESPONSE] * 4 + [packet.RST]
        with vmm.client(b"CONNECT 5\n"):
            assert [item.op for item in vmm.receive()] == [packet.REQUEST]
        vmm.send(packet.RST, 7, 0)
        vmm.send(packet.REQUEST, 7, 9)
        assert packet.RESPONSE in [item.op for item in vmm.receive()]
