"""Threat: one sandbox keeps the relay busy, or what the kernel holds for it, so that others wait.

Controls: after so much of one thing everybody else has a turn; what a program does not read fills
a buffer of a fixed size, and no more is taken for it; what has ended is not kept for who reads none
of it; and once a sandbox has moved all that it may, what it has open ends.
"""

import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.captured import Served, echo, eventually, relayed
from tests.security.test_egress import RESET
from tests.security.test_egress_bounds import captured, patient
from tests.security.test_streams_of_a_guest import Guest, framed, question
from tests.unit.egress.terminator.world import HOST, judging

from agentd.egress.compile import compile_table
from agentd.egress.keeper import RelayKeeper
from agentd.egress.relay.connection import NEAR_BUFFER
from agentd.egress.relay.loop import EventLoop
from agentd.egress.relay.tenant import Tenant
from agentd.egress.table import EgressTable
from agentd.linux import dialled
from agentd.model.egress import EgressBounds, StaticHost

# Counts what is done of each kind between two turns, and tells the most as somebody asks for it.
_COUNTING = """
from agentd.egress.relay import dns, flow, loop, relay
from agentd.linux import dialled
now, most = {}, {}
def count(of, name, kind):
    was = getattr(of, name)
    def counting(*args, **more):
        now[kind] = now.get(kind, 0) + 1
        most[kind] = max(most.get(kind, 0), now[kind])
        return was(*args, **more)
    setattr(of, name, counting)
work_for = loop.EventLoop.work_for
loop.EventLoop.work_for = lambda self, owner: (now.clear(), work_for(self, owner))[1]
parse = dns.parse_query
def told(message):
    if b"most" in message:
        raise RuntimeError(f"most: {sorted(most.items())}")
    return parse(message)
dns.parse_query = told
count(dns, "parse_query", "questions")
count(relay.Relay, "take", "connections")
count(flow.Flow, "_fill", "pieces")
count(dialled.FrameParser, "feed", "reads")
flow._CHUNK = 1
"""
_TELL = (
    "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
    ".sendto(query('most.example'), ('9.9.9.9', 53))"
)


@contextmanager
def stopped(keeper: RelayKeeper) -> Iterator[None]:
    """Its relay does nothing meanwhile, and finds all that was asked of it when it goes on."""
    os.kill(keeper.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(keeper.pid, signal.SIGCONT)


def _told(keeper: RelayKeeper) -> dict[str, int]:
    """The most of each kind that was done in one turn."""
    eventually(lambda: keeper.faults)
    text = keeper.faults[-1].partition("most: ")[2].partition(";")[0]
    return dict(eval(text))  # noqa: S307  of our own making


def _table(port: int, *rules: str, **bounds: int) -> dict[str, Any]:
    hosts = (StaticHost("db.internal", "127.0.0.1", port),)
    return compile_table(rules, EgressBounds(hosts=hosts, **bounds))


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served(echo)
    yield found
    found.close()


def test_of_what_one_sandbox_asks_and_dials_so_much_is_done_in_a_turn(served: Served) -> None:
    with patient(f"exec({_COUNTING!r})"), relayed() as (keeper, _), captured() as inside:
        admitted = keeper.admit(inside.sockets, _table(served.port, "db.internal:1"))
        inside.ask("[kept.append(socket.socket(type=kind)) for kind in [1] * 60 + [2]] and 0")
        inside.ask("[sock.setblocking(False) for sock in kept] and 0")
        with stopped(keeper):
            asked = "[kept[60].sendto(query('no.example'), ('9.9.9.9', 53)) for _ in range(60)]"
            assert len(inside.ask(asked)) == 60
            dialled_ = "[kept[at].connect_ex(('8.8.8.8', 53)) for at in range(60)]"
            assert len(inside.ask(dialled_)) == 60
        eventually(lambda: admitted.connections().totals["denied"] == 120)
        assert inside.ask(_TELL)
        most = _told(keeper)
        assert (most["questions"], most["connections"]) == (32, 32)


def test_of_what_one_connection_says_so_much_is_moved_in_a_turn(served: Served) -> None:
    with patient(f"exec({_COUNTING!r})"), relayed() as (keeper, _), captured() as inside:
        keeper.admit(inside.sockets, _table(served.port, "db.internal:1"))
        assert inside.ask("keep('db.internal', 1)") == 0
        assert inside.ask("kept[0].send(b'x') and kept[0].recv(1)") == "x"
        with stopped(keeper):
            assert inside.ask("kept[0].send(b'x' * 100)") == 100
        assert inside.ask("sum(len(kept[0].recv(1)) for _ in range(100))") == 100
        assert inside.ask(_TELL)
        assert 16 <= _told(keeper)["pieces"] <= 32  # both ways, where its echo is there already


def test_of_what_a_guest_asks_so_much_is_read_in_a_turn(served: Served, tmp_path: Path) -> None:
    with patient(f"exec({_COUNTING!r})"), relayed() as (keeper, _):
        guest = Guest(keeper, tmp_path, served.port)
        asking = guest.stream(dialled.header(dialled.DNS) + question(1, "no.example"))
        assert asking.recv(1)  # it is served
        asked = b"".join(question(number % 256, "no.example") for number in range(600))
        with stopped(keeper):
            asking.sendall(asked)
        eventually(lambda: guest.admitted.connections().totals["denied"] == 601)
        asking.sendall(question(1, "most.example"))
        most = _told(keeper)
        guest.close()
    assert most["reads"] == 8 < len(asked) // 1024


def test_what_the_kernel_holds_for_a_program_that_does_not_read_is_of_one_size(
    served: Served,
) -> None:
    """Of its listener's sockets, which what it accepts has, too: the kernel doubles it."""
    with relayed() as (keeper, _), captured() as inside:
        admitted = keeper.admit(inside.sockets, _table(served.port, "db.internal:1"))
        assert inside.ask("talk('db.internal', 1, b'x')") == "x"
        for sock in inside.sockets:
            if sock.type == socket.SOCK_STREAM:
                for each in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    assert sock.getsockopt(socket.SOL_SOCKET, each) == 2 * NEAR_BUFFER
        admitted.close()


def test_what_was_said_to_a_guest_that_takes_nothing_is_kept_for_a_time(tmp_path: Path) -> None:
    """The connection is over, and the last of it waits for a stream with a small buffer."""

    def say(sock: socket.socket) -> None:
        sock.recv(1)
        sock.sendall(bytes(64 << 10))

    little = (
        "from agentd.egress.relay import streams; import socket; "
        "streams.HALF_SECONDS, watch = 0.2, streams.GuestStream.__init__; "
        "streams.GuestStream.__init__ = lambda self, relay, names, tenant, sock: "
        "(sock.setsockopt(1, 7, 4096), watch(self, relay, names, tenant, sock))[1]"
    )
    talking = Served(say)
    with patient(little), relayed() as (keeper, _):
        guest = Guest(keeper, tmp_path, talking.port)
        head = dialled.header(dialled.TCP4, guest.address(), 5432)
        deaf = guest.stream(head + framed(b"x") + framed(b""))
        eventually(lambda: [row["ended"] for row in guest.admitted.connections().rows] == [True])
        ends = select.poll()
        ends.register(deaf, select.POLLHUP)
        eventually(lambda: [each for each in ends.poll(0) if each[1] & select.POLLHUP])
        guest.close()
    talking.close()


@pytest.mark.parametrize("spent", ["read", "passed"])
def test_once_all_is_moved_everything_that_is_open_ends(spent: str, tmp_path: Path) -> None:
    """Of another connection, whose requests are read or which is passed on, over which nothing is
    said just then."""

    def serve(sock: socket.socket) -> None:
        if sock.recv(1) == b"G":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + bytes(90_000))
        else:
            sock.sendall(b"x")
            sock.sendall(sock.recv(1) * 90_000)

    with (
        judging(tmp_path) as made,
        made.program(serve, [f"read {HOST}:80", "far.example.com:7"], plain=True) as program,
    ):
        assert program.admitted is not None
        hosts = [
            StaticHost(name, "127.0.0.1", program.served.port) for name in (HOST, "far.example.com")
        ]
        rules = [f"read {HOST}:80", "far.example.com:7"]
        table = compile_table(rules, EgressBounds(hosts=tuple(hosts), net_bytes=60_000))
        program.admitted.set(table)
        for at in range(2):
            assert program.ask("keep('far.example.com', 7)") == at
            assert program.ask(f"kept[{at}].send(b'x') and kept[{at}].recv(1)") == "x"
        if spent == "read":
            get = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
            program.ask(f"attempt(once, {get!r}, {HOST!r}, 80)")
        else:
            program.ask("kept[1].send(b'x')")
        assert program.ask("kept[0].recv(1)") == RESET
        over = "the sandbox has moved the 60000 bytes of its net_bytes"
        eventually(lambda: [row["reason"] for row in program.rows()].count(over) >= 2)


def test_what_rules_say_of_ports_is_kept_of_so_many() -> None:
    """There are more ports than memory is to be had for."""
    loop = EventLoop(lambda _: None)
    reports: Any = SimpleNamespace()
    tenant = Tenant(1, EgressTable(_table(1, "db.internal:1")), [], loop, reports)
    for port in range(1, 2000):
        assert tenant.verdict("db.internal", port).allowed == (port == 1)
    assert len(tenant._verdicts) <= 512
    loop._epoll.close()
