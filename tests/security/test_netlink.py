"""Threat: code that may look at its network configures it, or looks at the host's.

Controls: netlink's changes take CAP_NET_ADMIN in the network's user namespace, and no set of a
command's has a capability; the network namespace is the sandbox's own, and where it is the host's
seccomp refuses the socket.
"""

from collections.abc import Callable
from typing import Any

import pytest

ASK = """
def ask(kind, body, flags=5):  # NLM_F_REQUEST | NLM_F_ACK
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(5)
        sock.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        answer = sock.recv(65536)
    if struct.unpack_from("=H", answer, 4)[0] != 2:  # no NLMSG_ERROR: it is told
        return "told"
    code = -struct.unpack_from("=i", answer, 16)[0]
    return errno.errorcode[code] if code else "done"
def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
LINK, ADDRESS, ROUTE, NEIGHBOUR, RULE = (
    struct.pack("=BxHiII", 0, 0, 1, 0, 0), struct.pack("=BBBBI", 2, 32, 0, 254, 1),
    struct.pack("=8BI", 2, 32, 0, 0, 254, 3, 253, 1, 0),
    struct.pack("=BxHiHBB", 2, 0, 1, 128, 0, 1),
    struct.pack("=8BI", 2, 0, 0, 0, 254, 0, 0, 1, 0))
place, lo = attribute(2, bytes([127, 9, 9, 9])), struct.pack("=i", 1)
"""
# A link that may be made has a name that the loopback interface has already: the kernel looks at
# that only once it has let somebody in.
CHANGES = (
    ASK
    + """
for name, kind, body in (
    ("new link", 16, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, b"lo\\0")
                     + attribute(18, attribute(1, b"dummy\\0"))),
    ("set link", 19, LINK), ("new address", 20, ADDRESS + place),
    ("new route", 24, ROUTE + attribute(1, bytes([127, 9, 9, 9])) + attribute(4, lo)),
    ("new neighbour", 28, NEIGHBOUR + attribute(1, bytes([127, 9, 9, 9])) + attribute(2, bytes(6))),
    ("new rule", 32, RULE), ("new queue", 36, struct.pack("=BxHiIII", 0, 0, 1, 0, 0, 0)),
    ("delete link", 17, struct.pack("=BxHiII", 0, 0, 1, 0, 0)),
    ("delete address", 21, ADDRESS + attribute(2, bytes([127, 0, 0, 1]))),
):
    said(name, tried(ask, kind, body, 5 | 0x400))  # NLM_F_CREATE
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    import fcntl
    request = b"lo".ljust(16, b"\\0") + struct.pack("=H", 1).ljust(24, b"\\0")
    said("flags by ioctl", tried(fcntl.ioctl, sock, 0x8914, request))  # SIOCSIFFLAGS
"""
)
LOOKS = (
    ASK
    + """
said("interfaces", [name for _, name in socket.if_nameindex()])
said("links", tried(ask, 18, LINK, 0x301))  # NLM_F_REQUEST | NLM_F_DUMP
said("addresses", tried(ask, 22, ADDRESS[:4] + bytes(4), 0x301))
said("routes", tried(ask, 26, ROUTE, 0x301))
"""
)
OTHERS = """
for protocol in range(1, 32):
    said(protocol, call("socket", 16, 3, protocol))
"""
HOST = 'said("netlink", call("socket", 16, 3, 0))'


@pytest.mark.parametrize("user", [{}, {"user": "root"}], ids=["user", "root"])
def test_its_own_network_is_looked_at(sandbox: Callable[..., Any], user: dict[str, str]) -> None:
    said = sandbox("linux", **user).attack(LOOKS)
    assert said == {"interfaces": "['lo']", "links": "told", "addresses": "told", "routes": "told"}


@pytest.mark.parametrize("user", [{}, {"user": "root"}], ids=["user", "root"])
def test_nothing_is_changed(sandbox: Callable[..., Any], user: dict[str, str]) -> None:
    said = sandbox("linux", **user).attack(CHANGES)
    assert len(said) == 10
    assert set(said.values()) == {"EPERM"}, said


def test_off_capabilities_it_is_changed(sandbox: Callable[..., Any]) -> None:
    said = sandbox("linux", without={"capabilities"}, user="root").attack(CHANGES)
    assert "EPERM" not in {said[n] for n in said if n != "delete link"}, said
    assert {said["set link"], said["new address"], said["delete address"]} == {"done"}


def test_the_other_protocols_are_refused(sandbox: Callable[..., Any]) -> None:
    assert set(sandbox("linux", user="root").attack(OTHERS).values()) == {"EPROTONOSUPPORT"}


def test_the_hosts_network_is_not_looked_at(sandbox: Callable[..., Any]) -> None:
    assert sandbox("linux", net="host").attack(HOST) == {"netlink": "ENOTSUP"}


def test_off_seccomp_the_hosts_network_is_looked_at(sandbox: Callable[..., Any]) -> None:
    said = sandbox("linux", net="host", without={"seccomp"}).attack(HOST)
    assert said["netlink"].isdigit()


@pytest.mark.parametrize("net", ["none", "host"])
def test_at_the_process_level_there_is_none(sandbox: Callable[..., Any], net: str) -> None:
    assert sandbox("landlock", net=net).attack(HOST)["netlink"] in ("ENOTSUP", "EPERM")
