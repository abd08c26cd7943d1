"""A network namespace in which every address is local, and whose sockets somebody else may hold.

What a program dials by TCP arrives at one listener, whatever the address was; SO_ORIGINAL_DST tells
which. The namespace's own loopback is left alone. What it asks by DNS arrives at a UDP socket on
port 53; other UDP finds nobody and is refused at once. A socket belongs to the namespace that it
was made in, so all of this can be passed to another process, which accepts there.

Needs CAP_NET_ADMIN and CAP_NET_BIND_SERVICE in the user namespace that the network belongs to, and
``lo`` up. Standard library only.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Mapping, Sequence

from agentd.linux.netlink import attribute, exchange, request
from agentd.linux.redirect import NETLINK_NETFILTER, V4, V6, Family, batch

#: Where what is dialled arrives, on 127.0.0.1 and ::1. Below 1024, so that no program of an
#: ordinary user wants it.
PORT = 1019
DNS_PORT = 53
#: What programs are told to ask: any address is answered. It is one of ``lo``'s: where there is
#: none but 127.0.0.1, C libraries find no name for whoever wants IPv4 as far as the machine has it
#: (AI_ADDRCONFIG).
NAMESERVER = "127.0.0.53"
_BACKLOG = 1024
#: What the redirect takes of a kernel, by the names of its modules.
MODULES = ("nf_tables", "nft_chain_nat", "nft_redir", "nft_ct")

_RTM_NEWADDR, _RTM_NEWROUTE = 20, 24
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 0x02
_RT_TABLE_LOCAL, _RTPROT_BOOT, _RT_SCOPE_HOST, _RTN_LOCAL = 255, 3, 254, 2
_RTA_OIF = 4
_LOOPBACK = 1  # the index of lo: it is the first device of every namespace

# linux/in.h, linux/in6.h
_IP_PKTINFO = 8
_IPV6_RECVPKTINFO, _IPV6_FREEBIND = 49, 78
_PKTINFO = {
    socket.AF_INET: (socket.IPPROTO_IP, _IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 50),
}
#: What is told of a query, with these bytes of room for it.
PKTINFO_SPACE = socket.CMSG_SPACE(20)
_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is the same

# How long the kernel remembers a connection of this namespace, in seconds. What nobody answers, or
# has ended, is soon forgotten: entries are memory that no control group counts, in a table that is
# the whole machine's. A connection of which one end has said its last is not: the other may take
# its time, and without the entry what it says then has another address than the one dialled.
_REMEMBERED = {
    "tcp_timeout_syn_sent": 2,
    "tcp_timeout_syn_recv": 5,
    "tcp_timeout_close": 1,
    "tcp_timeout_time_wait": 2,
    "tcp_timeout_fin_wait": 86400,
    "tcp_timeout_close_wait": 86400,
}
_TRACKING = "/proc/sys/net/netfilter/nf_conntrack"

#: Of a kernel, or a namespace, that has no IPv6, or no redirect of it.
NO_IPV6 = (
    *(errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT),
    *(errno.ENOENT, errno.ENODEV, errno.EINVAL, errno.EACCES),
)
#: How an error begins that says so, and what comes before the modules' names.
NONE, WANT = "the kernel redirects nothing", "for want of "
_NO_MODULES = (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT)


def capture(arriving: Mapping[int, str] | None = None) -> list[socket.socket]:
    """Have all that is dialled in this network namespace arrive at the sockets that are returned;
    with ``arriving`` what comes to it over a device, from where it is dialled: from these addresses
    alone, one a family. Whatever else sends is not heard at all: by IPv6 the kernel remembers who
    asks for a neighbour, and the whole machine has room for a thousand or so.

    A TCP listener on ``PORT`` a family, then a UDP socket on port 53 a family, which tells by
    IP_PKTINFO or IPV6_PKTINFO which address was asked, and may answer from it; IPv4's first, and of
    IPv6 where there is any. The caller's to close.
    Raises OSError; where the kernel cannot redirect, it names the modules.
    """
    made: list[socket.socket] = []
    over = arriving is not None
    try:
        made += _of(V4, over)
        if not over:
            with contextlib.suppress(FileExistsError):  # of somebody before us, who is gone
                add_address(socket.AF_INET, _LOOPBACK, NAMESERVER, 8, _RT_SCOPE_HOST)
        try:
            made += _of(V6, over)
            _redirect((V4, V6), arriving)
        except OSError as error:
            if error.errno not in NO_IPV6:
                raise
            _redirect((V4,), arriving)
            for sock in made[2:]:
                sock.close()
            del made[2:]
    except BaseException:
        for sock in made:
            sock.close()
        raise
    _bound_tracking()
    return made[::2] + made[1::2]


def destination(client: socket.socket, v6: bool) -> tuple[bytes, int] | None:
    """Returns what was dialled, as 4 or 16 bytes and a port; None where it was our own listener.

    Raises OSError where the kernel does not know: nothing redirected it.
    """
    if v6:
        # struct sockaddr_in6: family, port, flow, address, scope
        raw = client.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
        address = raw[8:24]
        own = address == b"\0" * 15 + b"\1"
    else:
        # struct sockaddr_in: family, port, address
        raw = client.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16)
        address = raw[4:8]
        own = address[0] == 127
    (port,) = struct.unpack_from(">H", raw, 2)
    return None if own else (address, port)


def source(sock: socket.socket, told: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Returns the control message of an answer, of those of a query at one of our UDP sockets: from
    the address that the query was sent to."""
    level, kind = _PKTINFO[socket.AddressFamily(sock.family)]
    for found, type_, data in told:
        if (found, type_) == (level, kind):
            # in_pktinfo: interface, source, destination; in6_pktinfo: address, interface
            info = struct.pack("=I4s4s", 0, data[8:12], b"") if level == 0 else data[:16] + bytes(4)
            return [(level, kind, info)]
    return []


def _of(family: Family, arriving: bool) -> tuple[socket.socket, socket.socket]:
    """The listener and the UDP socket of a family, all of whose addresses are local from now on."""
    number = family[0]
    listener = socket.socket(number, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        asked = socket.socket(number, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except BaseException:
        listener.close()
        raise
    try:
        if number == socket.AF_INET6:
            for sock in (listener, asked):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            asked.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            # An answer comes from the address that was asked; by a route alone IPv6 lets none.
            asked.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            asked.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        # Connections of a listener before it may not be forgotten yet.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What arrives is redirected to an address of its device.
        own = "127.0.0.1" if number == socket.AF_INET else "::1"
        listener.bind(("" if arriving else own, PORT))
        listener.listen(_BACKLOG)
        asked.bind(("", DNS_PORT))
        with contextlib.suppress(FileExistsError):  # of somebody before us, who is gone
            request(_RTM_NEWROUTE, _route(number))
    except BaseException:
        listener.close()
        asked.close()
        raise
    return listener, asked


def _redirect(families: Sequence[Family], arriving: Mapping[int, str] | None = None) -> None:
    try:
        exchange(NETLINK_NETFILTER, *batch(families, arriving, PORT, DNS_PORT))
    except OSError as error:
        if error.errno not in _NO_MODULES:
            raise
        raise OSError(error.errno, f"{NONE}, {WANT}{', '.join(MODULES)}") from None


def _bound_tracking() -> None:
    """After the redirect: with that the kernel begins to track connections here."""
    for name, seconds in _REMEMBERED.items():
        with contextlib.suppress(OSError):  # a kernel may be built without these files
            fd = os.open(f"{_TRACKING}_{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"%d" % seconds)
            finally:
                os.close(fd)


def _route(family: int) -> bytes:
    """``local default dev lo``."""
    route = struct.pack(
        *("=8BI", family, 0, 0, 0, _RT_TABLE_LOCAL, _RTPROT_BOOT, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
    )
    return route + attribute(_RTA_OIF, struct.pack("=I", _LOOPBACK))


def add_address(family: int, device: int, address: str, bits: int, scope: int = 0) -> None:
    """Give a device, by its index, one address more. Raises OSError."""
    packed = socket.inet_pton(family, address)
    body = struct.pack("=4BI", family, bits, _IFA_F_NODAD, scope, device)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    request(_RTM_NEWADDR, body)
