"""Threat: code without a network reaches the host's services, or the cloud's metadata.

Controls: a network namespace of its own (linux); seccomp's refusal of internet sockets, and
Landlock's of TCP behind it (landlock). Unix sockets of the host: the private root and the network
namespace, or Landlock's scope where the network is shared (linux); seccomp and that scope
(landlock).
"""

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

ATTACK = """
tcp, udp, abstract, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
def stream(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(2)
        sock.connect(address)
        sock.sendall(b"stream")
    return "reached"
def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"datagram", ("127.0.0.1", udp))
    return "reached"
def fast_open():  # a connection that no connect(2) makes
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(2)
        sock.sendto(b"stream", socket.MSG_FASTOPEN, ("127.0.0.1", tcp))
    return "reached"
said("tcp", tried(stream, socket.AF_INET, ("127.0.0.1", tcp)))
said("fast open", tried(fast_open))
said("udp", tried(datagram))
said("abstract", tried(stream, socket.AF_UNIX, "\\0" + abstract))
said("path", tried(stream, socket.AF_UNIX, path))
"""
METADATA = """
def route():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("169.254.169.254", 80))  # only looks the route up, sends nothing
        return "routed"
def fetch():
    with socket.create_connection(("169.254.169.254", 80), timeout=2):
        return "reached"
said("route", tried(route))
if sys.argv[1:] != ["route"]:
    said("fetch", tried(fetch))
"""


@dataclass
class Services:
    """Four listeners of the host's, and what arrived at them."""

    tcp: socket.socket
    udp: socket.socket
    abstract: socket.socket
    path: socket.socket
    folder: str

    @property
    def arguments(self) -> tuple[str, ...]:
        ports = (str(s.getsockname()[1]) for s in (self.tcp, self.udp))
        abstract: bytes = self.abstract.getsockname()
        return (*ports, abstract[1:].decode(), self.path.getsockname())

    def reached(self) -> set[str]:
        """Names of those that somebody came to since the last call."""
        names = set()
        for name in ("tcp", "abstract", "path"):
            with contextlib.suppress(BlockingIOError):
                while True:
                    getattr(self, name).accept()[0].close()
                    names.add(name)
        with contextlib.suppress(BlockingIOError):
            self.udp.recv(100)
            names.add("udp")
        return names


@pytest.fixture
def services() -> Iterator[Services]:
    # Not pytest's own folder: the way to the socket must be open to everyone.
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        os.chmod(folder, 0o755)  # noqa: S103 an empty folder with one socket in it
        kinds = (
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, f"\0agentd-test-{os.urandom(6).hex()}"),
            (socket.AF_UNIX, socket.SOCK_STREAM, f"{folder}/socket"),
        )
        opened = []
        for family, kind, address in kinds:
            sock = stack.enter_context(socket.socket(family, kind))
            sock.bind(address)
            sock.setblocking(False)
            if kind == socket.SOCK_STREAM:
                sock.listen(16)
            opened.append(sock)
        os.chmod(f"{folder}/socket", 0o777)  # noqa: S103 as docker.sock at its worst
        tcp, udp, abstract, path = opened
        yield Services(tcp, udp, abstract, path, folder)


def test_nothing_of_the_host_is_reached(
    sandbox: Callable[..., Any], enclosed: str, services: Services
) -> None:
    said = sandbox(enclosed).attack(ATTACK, *services.arguments)
    assert services.reached() == set(), said
    assert {name for name, answer in said.items() if answer == "reached"} <= {"udp"}


def test_a_shared_network_opens_no_unix_socket(
    sandbox: Callable[..., Any], walled: str, services: Services
) -> None:
    said = sandbox(walled, net="host").attack(ATTACK, *services.arguments)
    assert services.reached() == {"tcp", "udp"}, said


def test_with_the_hosts_network_namespace_tcp_and_udp_arrive(
    sandbox: Callable[..., Any], services: Services
) -> None:
    said = sandbox("linux", net="host").attack(ATTACK, *services.arguments)
    assert {"tcp", "udp"} <= services.reached(), said


def test_without_landlock_a_shared_network_opens_abstract_sockets(
    sandbox: Callable[..., Any], services: Services
) -> None:
    box = sandbox("linux", without={"landlock"}, net="host")
    said = box.attack(ATTACK, *services.arguments)
    assert "abstract" in services.reached(), said


def test_a_socket_in_a_mounted_directory_is_the_callers_gift(
    sandbox: Callable[..., Any], services: Services
) -> None:
    """What lies in a mount is shared, listeners too: the private root is what withholds them."""
    ports, place = services.arguments[:3], "/data/socket"
    box = sandbox("linux", mounts=(f"{services.folder}:/data:rw",))
    said = box.attack(ATTACK, *ports, place)
    assert services.reached() == {"path"}, said


@pytest.mark.parametrize(
    ("without", "reached"),
    [
        ({"landlock"}, set()),
        ({"seccomp"}, {"udp", "path"}),
        ({"seccomp", "landlock"}, {"tcp", "udp", "abstract", "path"}),
    ],
    ids=["seccomp alone", "landlock alone", "neither"],
)
def test_each_layer_of_the_process_wall(
    sandbox: Callable[..., Any], services: Services, without: set[str], reached: set[str]
) -> None:
    said = sandbox("landlock", without=without).attack(ATTACK, *services.arguments)
    if said["fast open"] == "reached":
        # A TCP Fast Open passes Landlock before Linux 7.2 and the stable releases that have its
        # mend, as 6.18.44: the filter must refuse the socket itself.
        reached = reached | {"tcp"}
    assert services.reached() == reached, said
    assert (said["tcp"] == "reached") is ("abstract" in reached)
    assert "landlock" in without or said["fast open"] in ("reached", "EACCES")


def test_the_metadata_address_has_no_route(sandbox: Callable[..., Any], enclosed: str) -> None:
    said = sandbox(enclosed).attack(METADATA)
    refused = {"landlock": "EPERM", "gvisor": "EHOSTUNREACH"}.get(enclosed, "ENETUNREACH")
    assert set(said.values()) == {refused}, said


def test_with_the_hosts_network_it_has_one(sandbox: Callable[..., Any], walled: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("169.254.169.254", 80))
        except OSError as error:
            pytest.skip(f"this host has no route to the metadata address: {error}")
    assert sandbox(walled, net="host").attack(METADATA, "route") == {"route": "routed"}


# A datagram pair is a socket like any other: it sends where it likes, and can be connected anew.
PAIR = """
for name, kind in (("datagram", socket.SOCK_DGRAM), ("stream", socket.SOCK_STREAM),
                   ("packets", socket.SOCK_SEQPACKET)):
    pair = tried(socket.socketpair, socket.AF_UNIX, kind)
    if isinstance(pair, str):
        said(name, pair)
        continue
    one, other = pair
    one.send(b"to the pair")
    said(name, other.recv(100) == b"to the pair")
    said(f"{name} sent", tried(one.sendto, b"sent", sys.argv[1]))
    said(f"{name} connected", tried(one.connect, sys.argv[1]))
    said(f"{name} written", tried(one.send, b"written"))
"""


@pytest.fixture
def log_socket() -> Iterator[socket.socket]:
    """A datagram socket that all may write to, as the machine's log is."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        os.chmod(folder, 0o755)  # noqa: S103 the way to it must be open
        sock.bind(f"{folder}/log")
        os.chmod(f"{folder}/log", 0o777)  # noqa: S103 as /dev/log is
        sock.setblocking(False)
        yield sock


def _received(sock: socket.socket) -> list[bytes]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(sock.recv(100))
    return found


@pytest.mark.parametrize("net", ["none", "host"])
def test_no_pair_reaches_a_socket_of_the_host(
    sandbox: Callable[..., Any], enclosed: str, net: str, log_socket: socket.socket
) -> None:
    said = sandbox(enclosed, net=net).attack(PAIR, log_socket.getsockname())
    assert _received(log_socket) == [], said
    assert said["stream"] == said["packets"] == "True"  # pairs that cannot be led astray pass


def test_without_seccomp_a_datagram_pair_does(
    sandbox: Callable[..., Any], log_socket: socket.socket
) -> None:
    said = sandbox("landlock", without={"seccomp"}).attack(PAIR, log_socket.getsockname())
    assert _received(log_socket) == [b"sent", b"written"], said
