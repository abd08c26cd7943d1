"""A network of rules, which have one service of the host's: what else is reached there."""

import dataclasses
import socket
import ssl

from agentd.linux import anyip
from agentd.model.egress import THIS_HOST
from agentd.model.isolation import IsolationLevel
from agentd.selftest.attack import Attack, arrived, by, said_only
from agentd.selftest.attacks.checks import judge
from agentd.selftest.attacks.network import RAW
from agentd.selftest.planted import Planted

_DIAL = """
import threading
def dial(host, port, what=b"who?", kind=socket.SOCK_STREAM):
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=kind)
        with socket.socket(family, kind, protocol) as sock:
            sock.settimeout(20)
            sock.connect(address)
            sock.sendall(what)
            return sock.recv(100).decode("ascii", "replace") or "closed"
    except socket.gaierror:
        return "unknown"
def datagram(host, port):
    return dial(host, port, kind=socket.SOCK_DGRAM)
found = {}
def at_once(*tries):  # where a network is open some are never answered
    def one(name, action, *args):
        found[name] = tried(action, *args)
    threads = [threading.Thread(target=one, args=each) for each in tries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, *_ in tries:
        said(name, found[name])
"""
_GRANTED = _DIAL + "said('granted', dial(sys.argv[1], int(sys.argv[2])) == 'granted')"
_OTHERS = (
    _DIAL
    + """
tcp, udp, name, *own = sys.argv[1:]
tries = [("another port", dial, name, int(tcp))]
for host in ("127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"):
    tries.append((f"tcp {host}", dial, host, int(tcp)))
tries.append(("udp 127.0.0.1", datagram, "127.0.0.1", int(udp)))
for each in own:
    kind, host, port = each.split()
    action = dial if kind == "tcp" else datagram
    tries.append((f"{kind} {host}", action, host, int(port)))
    if ":" not in host:
        tries.append((f"{kind} mapped", action, f"::ffff:{host}", int(port)))
at_once(*tries)
"""
)
# Nobody has these addresses (RFC 5737, RFC 3849), and no name server that name (RFC 6761).
_UNNAMED = (
    _DIAL
    + """
at_once(
    ("a name", dial, "other.invalid", 443),
    ("a number", dial, "192.0.2.1", 443),
    ("metadata", dial, "169.254.169.254", 80),
    ("ipv6", dial, "2001:db8::1", 443),
    ("a name's number", dial, "198.18.255.77", int(sys.argv[1])),
    ("the relay", dial, "127.0.0.1", int(sys.argv[2])),
    ("udp", datagram, "192.0.2.1", 443),
)
"""
)
_LIES = (
    _DIAL + "said('tls', tried(dial, sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])))"
)
_REFUSED = {
    *("ECONNRESET", "ECONNREFUSED", "EPIPE", "ENETUNREACH", "EHOSTUNREACH", "EACCES", "EPERM"),
    *("closed", "unknown"),
}
_EVERYWHERE: dict[IsolationLevel, tuple[str, ...]] = dict.fromkeys(IsolationLevel, ())
_NONE = "the process level has no network of rules"
_STOPPED = by("", "network", "network")


def _granted(planted: Planted) -> tuple[str, ...]:
    return THIS_HOST, str(planted.granted)


def _others(planted: Planted) -> tuple[str, ...]:
    kinds = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}
    named = [(kinds[socket.SocketKind(sock.type)], *sock.getsockname()[:2]) for sock in planted.own]
    return (*planted.listeners()[:2], THIS_HOST, *(f"{k} {host} {port}" for k, host, port in named))


def _unnamed(planted: Planted) -> tuple[str, ...]:
    return str(planted.granted), str(anyip.PORT)


def _lies(planted: Planted) -> tuple[str, ...]:
    return (*_granted(planted), _hello("other.invalid").hex())


def _hello(name: str) -> bytes:
    """Return the first that a client of TLS says to the host of that name."""
    said = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), said, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return said.read()
    raise AssertionError("a handshake takes an answer")


ATTACKS = (
    Attack(
        "reach what its network's rules name", _GRANTED, _EVERYWHERE, judge, _granted, rules=True
    ),
    Attack(
        "reach the host past its network's rules",
        _OTHERS,
        _STOPPED,
        arrived("tcp", "udp", "own"),
        _others,
        otherwise=_NONE,
        rules=True,
    ),
    Attack(
        "reach names, numbers and ports that no rule has",
        _UNNAMED,
        _STOPPED,
        said_only(_REFUSED),
        _unnamed,
        otherwise=_NONE,
        rules=True,
    ),
    Attack(
        "name another host in TLS than the one that was dialled",
        _LIES,
        _STOPPED,
        said_only(_REFUSED),
        _lies,
        otherwise=_NONE,
        rules=True,
    ),
    dataclasses.replace(
        RAW,
        name="open raw and packet sockets in a network of rules",
        stopped_by=by("", "seccomp capabilities", ""),
        otherwise=f"{RAW.otherwise}, and the process level has no such network",
        rules=True,
    ),
)
