"""Threat: behind gVisor, whose kernel writes packets, one that was taken over writes any: from
addresses that are not its own, to ports that nobody gave it, as routers and neighbours do.

Controls: its device leads to a network namespace of its own, where what comes of another address
than the sandbox's is dropped, all TCP arrives at the relay's listener, and DNS alone is heard.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.captured import Captured, Served, echo, eventually, relayed

from agentd.egress.admitted import Admitted
from agentd.egress.compile import compile_table
from agentd.model.egress import EgressBounds, StaticHost

SOURCES = 200
# What a device's holder writes, by hand.
PACKETS = """
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
packets.bind(("eth0", 0x86DD))
mine = packets.getsockname()[4]
# The other end's: of a pair it is the only one that hears.
link = b"\\xff" * 6 + mine
AF4, AF6 = socket.AF_INET, socket.AF_INET6
def summed(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
def checked(body, at, src, dst, protocol):
    total = summed(src + dst + struct.pack(">II", len(body), protocol) + body)
    return body[:at] + struct.pack(">H", total) + body[at + 2:]
def v6(src, dst, protocol, body, at):
    src, dst = (socket.inet_pton(AF6, each) for each in (src, dst))
    head = struct.pack(">IHBB", 6 << 28, len(body), protocol, 255) + src + dst
    return link + b"\\x86\\xdd" + head + checked(body, at, src, dst, protocol)
def v4(src, dst, protocol, body, at):
    src, dst = (socket.inet_pton(AF4, each) for each in (src, dst))
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0) + src + dst
    head = head[:10] + struct.pack(">H", summed(head)) + head[12:]
    return link + b"\\x08\\0" + head + (checked(body, at, src, dst, protocol) if at else body)
def dns(name):
    asked = query(name)
    return struct.pack(">HHHH", 5353, 53, 8 + len(asked), 0) + asked
def tcp(port):
    return struct.pack(">HHIIBBHHH", 40000, port, 1, 0, 0x50, 2, 8192, 0, 0)
def neighbour():
    target = socket.inet_pton(AF6, "fd61:6765:6e74:1::1")
    return struct.pack(">BBHI", 135, 0, 0, 0) + target + b"\\1\\1" + mine
def router():
    prefix = struct.pack(">BBBBIII", 3, 4, 64, 0xC0, 9999, 9999, 0)
    prefix += socket.inet_pton(AF6, "2001:db8:99::")
    return struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix + b"\\1\\1" + mine
def ping(kind):
    body = struct.pack(">BBHHH", kind, 0, 0, 7, 7)
    return body if kind == 128 else body[:2] + struct.pack(">H", summed(body)) + body[4:]
def heard(*frames):
    # What comes back until an honest question has its answer: protocols, and what kind it is.
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as listening:
        listening.bind(("eth0", 3))  # ETH_P_ALL
        say(*frames)
        resolve("db.internal")
        listening.setblocking(False)
        found = set()
        while True:
            try:
                frame, place = listening.recvfrom(4096)
            except BlockingIOError:
                return sorted(found)
            v = frame[14] >> 4 if len(frame) > 54 or frame[12:14] == b"\\x08\\0" else 0
            if place[2] != socket.PACKET_OUTGOING and v:
                found.add((frame[23], frame[34]) if v == 4 else (frame[20], frame[54]))
def say(*frames):
    for frame in frames:
        packets.send(frame)
    return len(frames)
"""


def sandbox(without: str) -> Captured:
    # "sources": what is said of a packet of another's is that it goes on.
    off = "from agentd.linux import redirect; redirect.DROP = redirect.ACCEPT"
    captured = Captured(device=off if without else "")
    captured.ask(f"exec({PACKETS!r}, globals())")
    return captured


@pytest.fixture
def port() -> Iterator[int]:
    served = Served(echo)
    yield served.port
    served.close()


def rules(port: int) -> dict[str, object]:
    hosts = (StaticHost("db.internal", "127.0.0.1", port),)
    return compile_table(["db.internal:5432"], EgressBounds(hosts=hosts))


def written(captured: Captured, frames: str) -> None:
    captured.ask(f"say({' '.join(frames.split())})")


def asked(admitted: Admitted) -> set[str]:
    """Names that were refused, by their first label."""
    return {str(row["name"]).partition(".")[0] for row in admitted.connections().rows}


@pytest.mark.parametrize("without", ["", "sources"])
def test_it_fills_no_table_of_the_whole_machines(port: int, without: str) -> None:
    """By: what comes from other addresses is dropped. The kernel remembers who asks for a neighbour
    in one table for all namespaces, and with some 1,024 there the machine's own get no place."""
    file = Path("/proc/net/stat/ndisc_cache")
    if not file.exists():
        pytest.skip("the machine's neighbours are counted in its first network namespace alone")

    def entries() -> int:
        return int(file.read_text().splitlines()[1].split()[0], 16)

    captured = sandbox(without)
    try:
        with relayed() as (keeper, _):
            admitted = keeper.admit(captured.sockets, rules(port))
            before = entries()
            asks = "v6(f'2001:db8::{n:x}', 'ff02::1:ff00:1', 58, neighbour(), 2)"
            assert captured.ask(f"say(*({asks} for n in range(1, {SOURCES} + 1)))") == SOURCES
            # What it says as itself is heard, and behind all that.
            assert captured.ask("talk('db.internal', 5432, b'x')") == "x"
            grown = entries() - before
            assert grown > SOURCES // 2 if without else grown < SOURCES // 2
            admitted.close()
    finally:
        captured.close()


@pytest.mark.parametrize("without", ["", "sources"])
def test_nobody_hears_what_comes_from_addresses_that_are_not_its_own(
    port: int, without: str
) -> None:
    """By: the same. Of IPv4 the kernel takes none such anyway, for all addresses are its own."""
    captured = sandbox(without)
    try:
        with relayed() as (keeper, _):
            admitted = keeper.admit(captured.sockets, rules(port))
            written(
                captured,
                """
                v6('2001:db8::7', 'fd61:6765:6e74:1::1', 17, dns('six.example'), 6),
                v6('fe80::7', 'fd61:6765:6e74:1::1', 17, dns('link.example'), 6),
                v6('::1', 'fd61:6765:6e74:1::1', 17, dns('loop.example'), 6),
                v4('10.9.9.9', '169.254.77.1', 17, dns('four.example'), 6),
                v4('127.0.0.1', '169.254.77.1', 17, dns('loopfour.example'), 6),
                v6('fe80::7', 'ff02::1', 58, router(), 2),
                v6('fd61:6765:6e74:1::2', '2001:db8::1', 17, dns('own.example'), 6),
                v4('169.254.77.2', '8.8.8.8', 17, dns('ownfour.example'), 6),
            """,
            )
            eventually(lambda: asked(admitted) >= {"own", "ownfour"})
            heard = asked(admitted) - {"own", "ownfour"}
            assert heard == ({"six", "link"} if without else set())
            assert captured.ask("talk('db.internal', 5432, b'x')") == "x"
            admitted.close()
    finally:
        captured.close()


def test_every_port_and_address_there_is_the_relays(port: int) -> None:
    """By: the redirect, of whatever arrives."""
    captured = sandbox("")
    try:
        with relayed() as (keeper, _):
            admitted = keeper.admit(captured.sockets, rules(port))
            for host in ("169.254.77.1", "fd61:6765:6e74:1::1", "169.254.77.2"):
                for number in (22, 53, 1019):
                    got = captured.ask(f"talk({host!r}, {number}, b'x')")
                    # Its own address is its own.
                    own = host.endswith(".2")
                    assert got == (errno.ECONNREFUSED if own else errno.ECONNRESET), (host, number)
            rows = admitted.connections().rows
            assert {row["port"] for row in rows} == {22, 53, 1019}
            assert not any(row["allowed"] for row in rows)
            # A SYN to the other end's loopback, half a packet, a protocol of nobody's.
            written(
                captured,
                """
                v4('169.254.77.2', '127.0.0.1', 6, tcp(1019), 16),
                v6('fd61:6765:6e74:1::2', '::1', 6, tcp(1019), 16),
                v4('169.254.77.2', '169.254.77.1', 132, bytes(16), 8),
                link + b'\\x08\\0' + bytes(3),
                link + b'\\x86\\xdd' + b'\\x60' + bytes(50),
            """,
            )
            assert captured.ask("talk('db.internal', 5432, b'x')") == "x"
            assert {row["port"] for row in admitted.connections().rows} == {22, 53, 1019, 5432}
            admitted.close()
    finally:
        captured.close()


def test_nobody_there_answers_a_ping_nor_has_an_address_of_his_own(port: int) -> None:
    """By: the settings of its network namespaces. All addresses would answer, and say so."""
    captured = sandbox("")
    try:
        with relayed() as (keeper, _):
            admitted = keeper.admit(captured.sockets, rules(port))
            kinds = captured.ask(
                """heard(
                v4('169.254.77.2', '169.254.77.1', 1, ping(8), 0),
                v4('169.254.77.2', '8.8.8.8', 1, ping(8), 0),
                v6('fd61:6765:6e74:1::2', 'fd61:6765:6e74:1::1', 58, ping(128), 2),
                v6('fd61:6765:6e74:1::2', '2001:db8::1', 58, ping(128), 2),
            )""".replace("\n", "")
            )
            protocols = {protocol for protocol, _ in kinds}
            assert 17 in protocols, kinds  # the answer to the question was heard
            assert [1, 0] not in kinds and [58, 129] not in kinds
            addresses = captured.ask("open('/proc/net/if_inet6').read()")
            assert "fd61" in addresses and "fe80" not in addresses
            admitted.close()
    finally:
        captured.close()


pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="a namespace whose settings are written needs uid 0"
)
