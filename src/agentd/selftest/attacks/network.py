"""The host's network and sockets, and the cloud's metadata."""

from agentd.selftest.attack import (
    FILTERED,
    Attack,
    AttackOutcome,
    Judged,
    arrived,
    by,
    said_only,
    shown,
    unfinished,
)
from agentd.selftest.planted import METADATA, Planted, no_metadata_route
from agentd.selftest.report import Verdict

_CONNECT = """
tcp, udp, abstract, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
def stream(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(2)
        sock.connect(address)
    return "reached"
def datagram(flags=0):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"datagram", ("127.0.0.1", udp))
    return "sent"
def fast_open():  # a connection that no connect(2) makes
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(2)
        sock.sendto(b"stream", socket.MSG_FASTOPEN, ("127.0.0.1", tcp))
    return "reached"
"""
_LOOPBACK = """
said("tcp", tried(stream, socket.AF_INET, ("127.0.0.1", tcp)))
said("fast open", tried(fast_open))
said("udp", tried(datagram))
"""
_ABSTRACT = 'said("abstract", tried(stream, socket.AF_UNIX, "\\0" + abstract))'
_PATH = """
said("path", tried(stream, socket.AF_UNIX, path))
def pair():  # of datagrams: no such socket need be made by itself
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.sendto(b"datagram", sys.argv[5])
    return "sent"
said("pair", tried(pair))
"""
_METADATA = f"""
def route():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(({METADATA!r}, 80))  # only looks the route up
    return "routed"
said("route", tried(route))
"""
_FAMILIES = """
for name, family, kind, protocol in (
    ("netlink audit", 16, 3, 9), ("netlink netfilter", 16, 3, 12), ("vsock", 40, 1, 0),
    ("kernel crypto", 38, 5, 0), ("key", 15, 3, 2), ("sctp", 2, 5, 132),
    ("high bits", 1 << 32 | 16, 3, 1 << 32 | 9)):
    fd = call("socket", family, kind, protocol)
    said(name, "opened" if isinstance(fd, int) else fd)
"""
_RAW = """
for name, family, kind, protocol in (
    ("packet", 17, 3, 0), ("raw", 2, 3, 1), ("raw ipv6", 10, 3, 58)):
    fd = call("socket", family, kind, protocol)
    said(name, "opened" if isinstance(fd, int) else fd)
"""
# RTM_NEWLINK for the loopback interface, of whose flags none is to change: done, it does nothing.
_CONFIGURE = """
def ask(kind, body):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(2)
        sock.send(struct.pack("=IHHII", 16 + len(body), kind, 5, 1, 0) + body)  # REQUEST | ACK
        code = -struct.unpack_from("=i", sock.recv(4096), 16)[0]
        return errno.errorcode[code] if code else "done"
said("interface", tried(ask, 16, struct.pack("=BxHiII", 0, 0, 1, 0, 0)))
"""
_NO_SOCKET = {"EPERM", "EACCES", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "ENOTSUP"}


def _judge_route(seen: AttackOutcome) -> Judged:
    if seen.said.get("route") == "routed":
        return Verdict.THROUGH, f"there is a route to {METADATA}"
    return unfinished(seen) or (Verdict.STOPPED, shown(seen.said))


#: Of any network.
RAW = Attack(
    "open raw and packet sockets",
    _RAW,
    by("seccomp user capabilities", "seccomp capabilities", ""),
    said_only(_NO_SOCKET),
    otherwise="a machine without a network card has no packets of others",
    root=True,
)
ATTACKS = (
    Attack(
        "reach a service on the host's loopback",
        _CONNECT + _LOOPBACK,
        by("seccomp", "network", "network"),
        arrived("tcp", "udp"),
        Planted.listeners,
    ),
    Attack(
        "reach the cloud's metadata service",
        _METADATA,
        by("seccomp", "network", "network"),
        _judge_route,
        absent=no_metadata_route,
    ),
    Attack(
        "reach an abstract unix socket of the host",
        _CONNECT + _ABSTRACT,
        by("seccomp landlock", "network landlock"),
        arrived("abstract"),
        Planted.listeners,
    ),
    Attack(
        "reach a unix socket of the host by its path",
        _CONNECT + _PATH,
        by("seccomp", "mount_namespace"),
        arrived("path", "log"),
        Planted.listeners,
    ),
    Attack(
        "open vsock, kernel crypto and other rare sockets",
        _FAMILIES,
        FILTERED,
        said_only(_NO_SOCKET),
        otherwise="they are the machine's own kernel's",
    ),
    Attack(
        "change a network interface by netlink",
        _CONFIGURE,
        by("seccomp user capabilities", "capabilities", ""),
        said_only(_NO_SOCKET),
        otherwise="the interfaces are the machine's own",
        root=True,
    ),
    RAW,
)
