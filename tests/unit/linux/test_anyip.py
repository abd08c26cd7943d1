"""In a network namespace of its own, whose sockets this process holds."""

import contextlib
import errno
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.linux import anyip, netlink, rights, veth
from agentd.sandbox.backends.linux import report

# It hands its sockets over, and then does what it is told, a line of Python each.
INSIDE = """
import json, os, socket, sys
from agentd.linux import abi, anyip, net, veth
from agentd.linux.kernel import KERNEL
if "device" not in sys.argv:
    KERNEL.unshare(abi.CLONE_NEWNET | (abi.CLONE_NEWUSER if os.geteuid() else 0))
if "without IPv6" in sys.argv and "device" in sys.argv:
    for name in ("all", "default"):
        veth._BEGIN[f"ipv6/conf/{name}/disable_ipv6"] = "1"
elif "without IPv6" in sys.argv:
    open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w").write("1")
host = socket.socket(fileno=int(sys.argv[1]))
if "device" in sys.argv:
    made = veth.capture()
else:
    net.loopback_up()
    made = anyip.capture()
socket.send_fds(host, [b"x"], [sock.fileno() for sock in made])
for sock in made:
    sock.close()
def tcp(host, port):
    with socket.create_connection((host, port), 30) as sock:
        return sock.recv(100).decode()
def udp(family, host, port):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        sock.connect((host, port))
        sock.send(b"?")
        return sock.recv(100).decode()
def forged(family, address, host):
    veth._address(family, "eth0", address, 32 if family == socket.AF_INET else 128)
    with socket.socket(family) as sock:
        sock.settimeout(0.5)
        sock.bind((address, 0))
        sock.connect((host, 443))
        return sock.recv(100).decode()
def own(address, dialled):
    with socket.create_server((address, 8080)) as server:
        with socket.create_connection((dialled, 8080), 30) as ours, server.accept()[0] as theirs:
            theirs.send(b"own")
            return ours.recv(100).decode()
for line in sys.stdin:
    try:
        answer = eval(line)
    except OSError as error:
        answer = error.errno
    print(json.dumps(answer), flush=True)
"""
REFUSED = errno.ECONNREFUSED


class Inside:
    def __init__(self, *argv: str) -> None:
        host, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-c", INSIDE, str(theirs.fileno()), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[theirs.fileno()],
            env={"PYTHONPATH": str(Path(anyip.__file__).parents[2])},
        )
        theirs.close()
        with host:
            _, fds, _ = rights.receive(host, 10, 8)
        self.sockets = [socket.socket(fileno=fd) for fd in fds]

    def ask(self, line: str) -> Any:
        """The answer, while whatever arrives is told where it was going."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        while True:
            ready, _, _ = select.select([*self.sockets, self.process.stdout], [], [], 60)
            assert ready
            if self.process.stdout in ready:
                return json.loads(self.process.stdout.readline())
            for sock in ready:
                (_accept if sock.type == socket.SOCK_STREAM else _answer)(sock)

    def close(self) -> None:
        self.process.communicate(timeout=60)
        for sock in self.sockets:
            sock.close()


def _accept(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        if listener.family == socket.AF_INET:
            found = connection.getsockopt(socket.SOL_IP, 80, 16)  # SO_ORIGINAL_DST
            host = socket.inet_ntop(socket.AF_INET, found[4:8])
        else:
            found = connection.getsockopt(socket.IPPROTO_IPV6, 80, 28)
            host = socket.inet_ntop(socket.AF_INET6, found[8:24])
        (port,) = struct.unpack_from(">H", found, 2)
        connection.sendall(f"{host} {port}".encode())


def _answer(asked: socket.socket) -> None:
    _, [(level, kind, found)], _, client = asked.recvmsg(100, 200)
    if asked.family == socket.AF_INET:
        address, source = found[8:12], struct.pack("I4s4s", 0, found[8:12], bytes(4))
    else:
        address, source = found[:16], found[:16] + bytes(4)
    text = socket.inet_ntop(asked.family, address).encode()
    asked.sendmsg([text], [(level, kind, source)], 0, client)


@contextlib.contextmanager
def inside(*argv: str) -> Iterator[Inside]:
    made = Inside(*argv)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs uid 0")
@pytest.mark.parametrize("argv", [[], ["device"]])
def test_what_is_dialled_arrives_with_its_address(argv: list[str]) -> None:
    with inside(*argv) as sandbox:
        for host, port in (
            ("8.8.8.8", 443),
            ("10.0.0.1", 5432),
            ("192.0.2.7", 1),
            ("2001:4860:4860::8888", 443),
            ("fd61:6765:6e74::1", 65535),
        ):
            assert sandbox.ask(f"tcp({host!r}, {port})") == f"{host} {port}"
        assert sandbox.ask("tcp('::ffff:9.9.9.9', 25)") == "9.9.9.9 25"
        # Whoever dials the listener itself is known by that.
        own = veth.GATEWAY if argv else "127.0.0.1"
        assert sandbox.ask(f"tcp({own!r}, {anyip.PORT})") == f"{own} {anyip.PORT}"


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs uid 0")
@pytest.mark.parametrize("argv", [[], ["device"]])
def test_the_loopback_is_its_own(argv: list[str]) -> None:
    with inside(*argv) as sandbox:
        assert sandbox.ask("own('127.0.0.1', '127.0.0.1')") == "own"
        assert sandbox.ask("own('0.0.0.0', '127.0.0.5')") == "own"
        assert sandbox.ask("own('0.0.0.0', '0.0.0.0')") == "own"
        # What listens on every address gets nothing of what was meant for another.
        assert sandbox.ask("own('', '127.0.0.1')") == "own"
        assert sandbox.ask("tcp('127.0.0.1', 80)") == REFUSED
        assert sandbox.ask("tcp('::1', 80)") == REFUSED


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs uid 0")
def test_of_udp_dns_alone_is_heard_and_answered_by_who_was_asked() -> None:
    with inside() as sandbox:
        for host in ("127.0.0.53", "127.0.0.1", "8.8.8.8"):
            assert sandbox.ask(f"udp(socket.AF_INET, {host!r}, 53)") == host
        for host in ("::1", "2001:4860:4860::8888"):
            assert sandbox.ask(f"udp(socket.AF_INET6, {host!r}, 53)") == host
        assert sandbox.ask("udp(socket.AF_INET, '8.8.8.8', 443)") == REFUSED
        # Its neighbours are memory: nothing but DNS goes that far.
        assert sandbox.ask("udp(socket.AF_INET6, '2001:db8::1', 443)") == errno.EPERM


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs uid 0")
def test_over_a_device_every_datagram_but_dns_is_refused_at_once() -> None:
    """And none in silence, as the kernel bounds its errors to others."""
    with inside("device") as sandbox:
        for host in (veth.GATEWAY, "8.8.8.8"):
            assert sandbox.ask(f"udp(socket.AF_INET, {host!r}, 53)") == host
        assert sandbox.ask("udp(socket.AF_INET6, '2001:4860:4860::8888', 53)") == (
            "2001:4860:4860::8888"
        )
        for family, host in (("AF_INET", "8.8.8.8"), ("AF_INET6", "2001:db8::1")):
            for _ in range(100):
                assert sandbox.ask(f"udp(socket.{family}, {host!r}, 443)") == REFUSED
        assert sandbox.ask("udp(socket.AF_INET, '127.0.0.1', 53)") == REFUSED


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs uid 0")
def test_a_device_leads_to_the_sockets_and_nowhere_else() -> None:
    with inside("device") as sandbox:
        *heard, last = sandbox.sockets
        for sock in heard:
            sock.close()
        sandbox.sockets = []
        for dial in ("tcp('8.8.8.8', 443)", "tcp('2001:db8::1', 443)"):
            assert sandbox.ask(dial) == REFUSED
        assert sandbox.ask("udp(socket.AF_INET, '8.8.8.8', 53)") == REFUSED
        last.close()
        # With the last of them that namespace ends, and the device with it: a moment later. What is
        # sent meanwhile nobody has heard, and nobody will say so.
        deadline = time.monotonic() + 60
        while sandbox.ask("'eth0' in dict(socket.if_nameindex()).values()"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        gone = (REFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)
        assert sandbox.ask("tcp('8.8.8.8', 443)") in gone
        assert sandbox.ask("tcp('2001:db8::1', 443)") in gone


# Each asks as soon as it may, and both ends know each other: nothing is sent again.
_AT_ONCE = """
import fcntl, socket, struct
from agentd.linux import veth
def hardware(sock, name):  # SIOCGIFHWADDR
    return fcntl.ioctl(sock, 0x8927, struct.pack("16s24x", name))[18:24]
def know(sock, name, address, hardware):  # SIOCSARP, for good
    request = struct.pack("=HH4s8xH6s8xi16x16s", 2, 0, address, 1, hardware, 6, name)
    fcntl.ioctl(sock, 0x8955, request)
for _ in range(20):
    made = veth.capture()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        know(sock, b"eth0", bytes((169, 254, 77, 1)), hardware(made[2], b"relay"))
        know(made[2], b"relay", bytes((169, 254, 77, 2)), hardware(sock, b"eth0"))
        made[2].settimeout(30)
        sock.settimeout(30)
        sock.connect(("8.8.8.8", 53))
        sock.send(b"?")
        client = made[2].recvmsg(100, 200)[3]
        source = struct.pack("=I4s4s", 0, bytes((8, 8, 8, 8)), bytes(4))
        made[2].sendmsg([b"!"], [(socket.SOL_IP, 8, source)], 0, client)
        print(sock.recv(9).decode(), end="", flush=True)
    for each in made:
        each.close()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs uid 0")
def test_a_device_loses_nothing_from_the_first_on() -> None:
    """A kernel that has not looked at a new device's carrier throws away what it is to send."""
    done = subprocess.run(
        [sys.executable, "-c", _AT_ONCE],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PYTHONPATH": str(Path(anyip.__file__).parents[2])},
    )
    assert done.stdout == "!" * 20, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs uid 0")
def test_over_a_device_what_comes_from_another_address_is_not_answered() -> None:
    """Whom the kernel answers is a neighbour, of whom the whole machine remembers so many."""
    with inside("device") as sandbox:
        assert sandbox.ask("tcp('2001:db8::1', 443), tcp('8.8.8.8', 443)")
        for family, own, host in (
            ("AF_INET6", "fd61:6765:6e74:1::99", "2001:db8::1"),
            ("AF_INET", "10.9.9.9", "8.8.8.8"),
        ):
            assert sandbox.ask(f"forged(socket.{family}, {own!r}, {host!r})") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs uid 0")
@pytest.mark.parametrize("argv", [[], ["device"]])
def test_ipv4_is_enough(argv: list[str]) -> None:
    with inside("without IPv6", *argv) as sandbox:
        assert [sock.family for sock in sandbox.sockets] == [socket.AF_INET] * (2 + len(argv))
        assert sandbox.ask("tcp('8.8.8.8', 443)") == "8.8.8.8 443"
        assert sandbox.ask("udp(socket.AF_INET, '8.8.8.8', 53)") == "8.8.8.8"
        assert sandbox.ask("tcp('2001:db8::1', 443)") in (errno.ENETUNREACH, errno.EADDRNOTAVAIL)


def test_a_kernel_without_the_modules_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(protocol: int, request: bytes, last: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no such subsystem")

    monkeypatch.setattr(anyip, "exchange", refuse)  # no kernel of ours lacks them
    with pytest.raises(OSError, match="nf_tables, nft_chain_nat, nft_redir, nft_ct") as refusal:
        anyip._redirect(())
    assert refusal.value.errno == errno.EOPNOTSUPP


def test_a_kernel_without_such_a_device_is_told_its_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(protocol: int, request: bytes, last: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no such kind of device")

    monkeypatch.setattr(netlink, "exchange", refuse)  # as above
    with pytest.raises(OSError, match=r"for want of veth$") as refusal:
        veth._make(0)
    assert "modprobe -a veth)" in report.network_fix(str(refusal.value.strerror))


TRACKED = "int(open('/proc/sys/net/netfilter/nf_conntrack_{}').read())"


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs uid 0")
def test_what_the_kernel_remembers_is_bounded() -> None:
    """Entries are memory that no control group counts."""
    with inside() as sandbox:
        datagrams = "[udp(socket.AF_INET, f'127.0.0.{n}', 53) for n in range(1, 40)][-1]"
        assert sandbox.ask(datagrams) == "127.0.0.39"
        assert sandbox.ask("udp(socket.AF_INET6, '2001:db8::1', 53)") == "2001:db8::1"
        assert sandbox.ask(TRACKED.format("count")) == 0
        sandbox.ask("tcp('8.8.8.8', 443)")
        assert sandbox.ask(TRACKED.format("count")) >= 1
        assert sandbox.ask(TRACKED.format("tcp_timeout_time_wait")) <= 2
        # An end that has said its last may wait for long for what the other says.
        assert sandbox.ask(TRACKED.format("tcp_timeout_close_wait")) >= 3600
        assert sandbox.ask(TRACKED.format("tcp_timeout_fin_wait")) >= 3600
