"""A network namespace whose one device leads to another, where all that is dialled is captured.

For a kernel that has a network of its own and writes packets: what is at the device's other end is
``anyip``'s, and nothing else is. The first namespace has no way out but the device, and the second
none at all.

Needs CAP_NET_ADMIN and CAP_SYS_ADMIN in the user namespace that both belong to. Standard library
only.
"""

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Mapping

from agentd.linux import abi, anyip, net, netlink
from agentd.linux.kernel import KERNEL

#: Of the device's other end, to which everything is sent: link-local, which no rule can grant. It
#: answers to what is asked by DNS.
GATEWAY = "169.254.77.1"
_ADDRESS, _BITS = "169.254.77.2", 30
# Beside the addresses that names have (``egress.relay.synthetic``), and as private as those.
_GATEWAY6, _ADDRESS6, _BITS6 = "fd61:6765:6e74:1::1", "fd61:6765:6e74:1::2", 126
_ENDS = {
    socket.AF_INET: (GATEWAY, _ADDRESS, _BITS),
    socket.AF_INET6: (_GATEWAY6, _ADDRESS6, _BITS6),
}
_DEVICE, _OTHER = "eth0", "relay"
_UP_SECONDS = 5.0
_MODULE = "veth"

# linux/rtnetlink.h, if_link.h, if_addr.h, veth.h
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWROUTE = 16, 18, 24
_IFLA_IFNAME, _IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 16, 18, 28
_IF_OPER_UP = 6
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RT_TABLE_MAIN, _RT_TABLE_LOCAL, _RTPROT_BOOT, _RTN_UNICAST = 254, 255, 3, 1
_SCOPE_ALL, _SCOPE_LINK = 0, 253
_IFINFOMSG = bytes(16)  # of a device that is none yet
_NO_DEVICE = (errno.EOPNOTSUPP, errno.ENODEV)

# Files below /proc/sys/net. No device has addresses but those that it is given here, and nothing is
# sent on, whatever the machine does. A datagram that finds nobody is refused each time; a ping is
# not answered: it would be at every address.
_BEGIN = {"ipv6/conf/default/addr_gen_mode": "1", "ipv4/ip_forward": "0"}
_ANSWERS = {
    "ipv4/icmp_ratemask": "0",
    "ipv4/icmp_echo_ignore_all": "1",
    "ipv6/icmp/ratemask": "0",
    "ipv6/icmp/echo_ignore_all": "1",
}


def capture() -> list[socket.socket]:
    """Be in a new network namespace, whose ``eth0`` leads to another; return the sockets at which
    all that comes over it arrives there, as ``anyip.capture`` does; then one without an address.

    That other one, and the device, are there as long as these are. Where the last alone is left,
    what is dialled is refused at once; without it programs wait for long.
    Raises OSError; where the kernel has no such device, or redirects nothing, it names the modules.
    """
    KERNEL.unshare(abi.CLONE_NEWNET)
    with contextlib.ExitStack() as undo:
        relays = _namespace(undo)
        KERNEL.unshare(abi.CLONE_NEWNET)
        _begin()
        sandboxes = _namespace(undo)
        KERNEL.setns(relays, abi.CLONE_NEWNET)
        _begin()
        _make(sandboxes)
        net.device_up(_OTHER)
        _set(_ANSWERS)
        families = [family for family in _ENDS if _answer(family)]
        sockets = anyip.capture({family: address for family, (_, address, _) in _ENDS.items()})
        try:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
            sockets.append(socket.socket(socket.AF_INET, kind))
            KERNEL.setns(sandboxes, abi.CLONE_NEWNET)
            net.device_up(_DEVICE)
            for family in families:
                _lead(family)
            for namespace, device in ((relays, _OTHER), (sandboxes, _DEVICE)):
                KERNEL.setns(namespace, abi.CLONE_NEWNET)
                _await_up(device)
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
    return sockets


def _namespace(undo: contextlib.ExitStack) -> int:
    """A descriptor of the one that we are in."""
    fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    undo.callback(os.close, fd)
    return fd


def _begin() -> None:
    _set(_BEGIN)
    net.loopback_up()


def _set(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        with contextlib.suppress(OSError):  # a kernel without IPv6, or an older one
            KERNEL.write(f"/proc/sys/net/{name}", value)


def _make(sandboxes: int) -> None:
    """The two devices, one here, the other in that namespace."""
    there = netlink.attribute(_IFLA_IFNAME, _DEVICE.encode() + b"\0")
    there += netlink.attribute(_IFLA_NET_NS_FD, struct.pack("=I", sandboxes))
    data = netlink.attribute(_VETH_INFO_PEER, _IFINFOMSG + there)
    kind = netlink.attribute(_IFLA_INFO_KIND, _MODULE.encode() + b"\0")
    info = netlink.attribute(_IFLA_LINKINFO, kind + netlink.attribute(_IFLA_INFO_DATA, data))
    here = netlink.attribute(_IFLA_IFNAME, _OTHER.encode() + b"\0")
    try:
        netlink.request(_RTM_NEWLINK, _IFINFOMSG + here + info)
    except OSError as error:
        if error.errno not in _NO_DEVICE:
            raise
        raise OSError(error.errno, f"{anyip.NONE}, {anyip.WANT}{_MODULE}") from None


def _await_up(device: str) -> None:
    """Until a worker of the kernel's has seen that its other end is up, too, it loses what it is to
    send. Newer kernels see to that as they are asked; no longer than a moment is waited for it."""
    until = time.monotonic() + _UP_SECONDS
    while _state(device) != _IF_OPER_UP and time.monotonic() < until:
        time.sleep(0.001)


def _state(device: str) -> int:
    """What the kernel says of it (IF_OPER_*)."""
    about = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(device), 0, 0)
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_UP_SECONDS)
        netlink.send(struct.pack("=IHHII", 16 + len(about), _RTM_GETLINK, 1, 1, 0) + about)
        answer = netlink.recv(1 << 16)
    at = 16 + len(about)
    while at + 4 < len(answer):
        length, name = struct.unpack_from("=HH", answer, at)
        if name == _IFLA_OPERSTATE:
            return answer[at + 4]
        at += max(length + 3 & ~3, 4)
    return 0


def _answer(family: socket.AddressFamily) -> bool:
    """Be what the sandbox sends everything to; False where there is no such family.

    What goes back has a route of its own: of an address that is local it would go nowhere.
    """
    gateway, address, bits = _ENDS[family]
    try:
        _address(family, _OTHER, gateway, bits)
        _route(family, _OTHER, _RT_TABLE_LOCAL, _SCOPE_LINK, (_RTA_DST, address))
    except OSError as error:
        if family != socket.AF_INET6 or error.errno not in anyip.NO_IPV6:
            raise
        return False
    return True


def _lead(family: socket.AddressFamily) -> None:
    """Send everything there."""
    gateway, address, bits = _ENDS[family]
    _address(family, _DEVICE, address, bits)
    _route(family, _DEVICE, _RT_TABLE_MAIN, _SCOPE_ALL, (_RTA_GATEWAY, gateway))


def _address(family: int, device: str, address: str, bits: int) -> None:
    anyip.add_address(family, socket.if_nametoindex(device), address, bits)


def _route(family: int, device: str, table: int, scope: int, to: tuple[int, str]) -> None:
    """To one address, or by a gateway to all."""
    kind, address = to
    packed = socket.inet_pton(family, address)
    bits = 8 * len(packed) if kind == _RTA_DST else 0
    body = struct.pack(*("=8BI", family, bits, 0, 0, table, _RTPROT_BOOT, scope, _RTN_UNICAST, 0))
    body += netlink.attribute(kind, packed)
    body += netlink.attribute(_RTA_OIF, struct.pack("=I", socket.if_nametoindex(device)))
    netlink.request(_RTM_NEWROUTE, body)
