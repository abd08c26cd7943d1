"""Threat: sockets that forge packets, configure the machine or reach seldom-tested kernel code.

Control: seccomp's socket rules. Raw and packet sockets take a capability too: both are left out
for the proof.
"""

from collections.abc import Callable
from typing import Any

import pytest

# Only what the kernel gives to everyone, or to a root of its own network namespace.
SOCKETS = {
    "packet": "socket.AF_PACKET, socket.SOCK_RAW, 0",
    "packet datagrams": "socket.AF_PACKET, socket.SOCK_DGRAM, 0",
    "raw": "socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP",
    "raw, close-on-exec": "socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 255",
    "raw ipv6": "socket.AF_INET6, socket.SOCK_RAW, 58",
    "netlink audit": "socket.AF_NETLINK, socket.SOCK_DGRAM, 9",
    "netlink netfilter": "socket.AF_NETLINK, socket.SOCK_RAW, 12",
    "netlink generic": "socket.AF_NETLINK, socket.SOCK_RAW, 16",
    "vsock": "socket.AF_VSOCK, socket.SOCK_STREAM, 0",
    "kernel crypto": "socket.AF_ALG, socket.SOCK_SEQPACKET, 0",
    "key": "15, socket.SOCK_RAW, 2",
    "rds": "21, socket.SOCK_SEQPACKET, 0",
    "can": "socket.AF_CAN, socket.SOCK_RAW, 1",
    "tipc": "socket.AF_TIPC, socket.SOCK_SEQPACKET, 0",
    "bluetooth": "31, socket.SOCK_RAW, 1",
    "kcm": "41, socket.SOCK_DGRAM, 0",
    "smc": "43, socket.SOCK_STREAM, 0",
    "xdp": "44, socket.SOCK_RAW, 0",
    "sctp": "socket.AF_INET, socket.SOCK_SEQPACKET, 132",
    "multipath tcp": "socket.AF_INET, socket.SOCK_STREAM, 262",
    "udp lite": "socket.AF_INET, socket.SOCK_DGRAM, 136",
}
ATTACK = """
for line in sys.argv[1:]:
    name, _, arguments = line.partition(": ")
    family, kind, protocol = eval(arguments)
    fd = call("socket", int(family), int(kind), protocol)
    said(name, "opened" if isinstance(fd, int) else fd)
"""
# What the kernel says of a family or protocol that it was built without.
UNKNOWN = {"EAFNOSUPPORT", "ENOTSUP", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"}
# The socket's family cannot be told from its number alone: high bits must not hide it.
HIDDEN = """
said("socket", call("socket", (1 << 32) | socket.AF_NETLINK, int(socket.SOCK_RAW), 1 << 32 | 9))
said("type", call("socket", int(socket.AF_INET), (1 << 32) | int(socket.SOCK_RAW), 1))
pair = (ctypes.c_int * 2)()
said("socketpair", call("socketpair", int(socket.AF_TIPC), int(socket.SOCK_SEQPACKET), 0, pair))
"""
# Root of its own namespaces, with every capability that a sandbox could ever have.
STRIPPED = {
    "linux": {"seccomp", "capabilities"},
    "oci": {"seccomp", "capabilities"},
    "landlock": {"seccomp", "capabilities", "identity"},
}


def _lines() -> list[str]:
    return [f"{name}: {arguments}" for name, arguments in SOCKETS.items()]


def test_no_such_socket_can_be_made(sandbox: Callable[..., Any], enclosed: str) -> None:
    box = sandbox(enclosed)
    said = box.attack(ATTACK, *_lines())
    assert said.keys() == SOCKETS.keys()
    assert "opened" not in said.values(), said
    hidden = box.attack(HIDDEN)
    assert set(hidden.values()) <= {"EPERM", *UNKNOWN}, hidden


@pytest.mark.parametrize("net", ["none", "host"])
def test_with_a_network_neither(sandbox: Callable[..., Any], enclosed: str, net: str) -> None:
    said = sandbox(enclosed, net=net).attack(ATTACK, *_lines())
    assert "opened" not in said.values(), said


def test_root_inside_cannot_either(sandbox: Callable[..., Any]) -> None:
    said = sandbox("linux", user="root").attack(ATTACK, *_lines())
    assert "opened" not in said.values(), said


def test_the_rules_alone_stop_it(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux", without={"capabilities"}, user="root")
    said = box.attack(ATTACK, *_lines())
    assert "opened" not in said.values(), said


@pytest.mark.root
def test_without_the_rules_they_open(sandbox: Callable[..., Any], walled: str) -> None:
    user = {"user": "root"} if walled != "landlock" else {}
    said = sandbox(walled, without=STRIPPED[walled], **user).attack(ATTACK, *_lines())
    absent = {name for name, answer in said.items() if answer in UNKNOWN}
    opened = {name for name, answer in said.items() if answer == "opened"}
    assert {"raw", "netlink audit"} <= opened, said
    # The rest is there or the kernel has none of it: nothing but the rules was in the way.
    assert opened | absent >= set(SOCKETS) - {"raw, close-on-exec"}, said
