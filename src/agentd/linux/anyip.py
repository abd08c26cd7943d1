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
from collections.abc import Iterable, Mapping, Sequence

#: Where what is dialled arrives, on 127.0.0.1 and ::1. Below 1024, so that no program of an
#: ordinary user wants it.
PORT = 1019
DNS_PORT = 53
#: What programs are told to ask: any address is answered. It is one of ``lo``'s: where there is
#: none but 127.0.0.1, C libraries find no name for whoever wants IPv4 as far as the machine has it
#: (AI_ADDRCONFIG).
NAMESERVER = "127.0.0.53"
_BACKLOG = 1024
_SECONDS = 10  # that the kernel may take to answer; it may load a module meanwhile
#: What the redirect takes of a kernel, by the names of its modules.
MODULES = ("nf_tables", "nft_chain_nat", "nft_redir", "nft_ct")

# linux/netlink.h, linux/rtnetlink.h
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NLMSG_ERROR = 2
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_NESTED = 0x8000
_RTM_NEWADDR, _RTM_NEWROUTE = 20, 24
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 0x02
_RT_TABLE_LOCAL, _RTPROT_BOOT, _RT_SCOPE_HOST, _RTN_LOCAL = 255, 3, 254, 2
_RTA_OIF = 4
_LOOPBACK = 1  # the index of lo: it is the first device of every namespace

# linux/netfilter/nfnetlink.h, nf_tables.h
_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 16, 17
_NEWTABLE, _NEWCHAIN, _NEWRULE = _SUBSYSTEM | 0, _SUBSYSTEM | 3, _SUBSYSTEM | 6
_HOOK_ARRIVING, _HOOK_OUTPUT = 0, 3
_PRIORITY_RAW, _PRIORITY_DNAT = -300, -100
_NETWORK_HEADER, _META_L4PROTO = 1, 16
_DROP, _ACCEPT = 0, 1
_EQUAL, _NOT_EQUAL = 0, 1
_TABLE, _UNTRACKED, _REDIRECTED = b"agentd\0", b"untracked\0", b"redirected\0"
_TCP = bytes((socket.IPPROTO_TCP,))

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

# Families by their own numbers and by netfilter's, which are the same; where a packet has its
# destination, and what of that is the loopback's.
_V4 = (socket.AF_INET, 16, b"\x7f")
_V6 = (socket.AF_INET6, 24, b"\0" * 15 + b"\x01")
_Family = tuple[socket.AddressFamily, int, bytes]
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
        made += _of(_V4, over)
        if not over:
            with contextlib.suppress(FileExistsError):  # of somebody before us, who is gone
                add_address(socket.AF_INET, _LOOPBACK, NAMESERVER, 8, _RT_SCOPE_HOST)
        try:
            made += _of(_V6, over)
            _redirect((_V4, _V6), arriving)
        except OSError as error:
            if error.errno not in NO_IPV6:
                raise
            _redirect((_V4,), arriving)
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
    """What the program dialled, as 4 or 16 bytes and a port; None where it was our own listener.

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
    """The control message of an answer, of those of a query at one of our UDP sockets: from the
    address that the query was sent to."""
    level, kind = _PKTINFO[socket.AddressFamily(sock.family)]
    for found, type_, data in told:
        if (found, type_) == (level, kind):
            # in_pktinfo: interface, source, destination; in6_pktinfo: address, interface
            info = struct.pack("=I4s4s", 0, data[8:12], b"") if level == 0 else data[:16] + bytes(4)
            return [(level, kind, info)]
    return []


def _of(family: _Family, arriving: bool) -> tuple[socket.socket, socket.socket]:
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


def _redirect(families: Sequence[_Family], arriving: Mapping[int, str] | None = None) -> None:
    try:
        _exchange(_NETLINK_NETFILTER, *_batch(families, arriving))
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


def _batch(families: Iterable[_Family], arriving: Mapping[int, str] | None) -> tuple[bytes, int]:
    """The messages that set the redirect of these families, and the number of the one that is
    acknowledged. In one batch: it holds as a whole, or not at all.

    A table a family, with two chains. What comes of another than who may send is dropped. Of all
    but TCP no connections are tracked: entries are memory. What goes to the loopback is accepted as
    it is, all other TCP goes to ``PORT`` there.
    """
    hook = _HOOK_OUTPUT if arriving is None else _HOOK_ARRIVING
    found = [_nf_message(_BATCH_BEGIN, _REQUEST, 0, 0, b"", _SUBSYSTEM >> 8)]
    last = 0
    for family, offset, loopback in families:
        table = attribute(1, _TABLE)
        untracked = table + attribute(2, _UNTRACKED)
        other = _nest(4, _load_protocol(), _compare(_NOT_EQUAL, _TCP), _expression("notrack"))
        redirected = table + attribute(2, _REDIRECTED)
        own = (_load(offset, len(loopback)), _compare(_EQUAL, loopback), _verdict(_ACCEPT))
        rest = (_load_protocol(), _compare(_EQUAL, _TCP), _number(PORT), _redirect_there())
        strangers = []
        if arriving is not None:
            own_source = socket.inet_pton(family, arriving[family])
            # A packet's source stands right before its destination.
            from_others = (
                _load(offset - len(own_source), len(own_source)),
                _compare(_NOT_EQUAL, own_source),
                _verdict(_DROP),
            )
            strangers = [(_NEWRULE, _APPEND, untracked + _nest(4, *from_others))]
        for kind, more, body in (
            (_NEWTABLE, 0, table),
            (_NEWCHAIN, 0, table + _chain(_UNTRACKED, b"filter\0", hook, _PRIORITY_RAW)),
            (_NEWCHAIN, 0, table + _chain(_REDIRECTED, b"nat\0", hook, _PRIORITY_DNAT)),
            *strangers,
            (_NEWRULE, _APPEND, untracked + other),
            (_NEWRULE, _APPEND, redirected + _nest(4, *own)),
            (_NEWRULE, _APPEND | _ACK, redirected + _nest(4, *rest)),
        ):
            last += 1
            found.append(_nf_message(kind, _REQUEST | _CREATE | more, last, family, body))
    found.append(_nf_message(_BATCH_END, _REQUEST, last + 1, 0, b"", _SUBSYSTEM >> 8))
    return b"".join(found), last


def _chain(name: bytes, kind: bytes, hook: int, priority: int) -> bytes:
    where = attribute(1, _be32(hook)) + attribute(2, _be32(priority))
    return attribute(3, name) + _nest(4, where) + attribute(7, kind)


# Expressions of a rule: a name and attributes each. Register 1 has what is compared, 2 the port.


def _load(offset: int, length: int) -> bytes:
    """Load so many bytes of the IP header."""
    fields = (1, _NETWORK_HEADER, offset, length)
    return _expression("payload", *(attribute(n, _be32(v)) for n, v in enumerate(fields, 1)))


def _load_protocol() -> bytes:
    return _expression("meta", attribute(2, _be32(_META_L4PROTO)), attribute(1, _be32(1)))


def _compare(operation: int, value: bytes) -> bytes:
    """Go on to the next rule where that does not hold for what was loaded."""
    how = attribute(1, _be32(1)) + attribute(2, _be32(operation))
    return _expression("cmp", how, _nest(3, attribute(1, value)))


def _verdict(code: int) -> bytes:
    verdict = _nest(2, _nest(2, attribute(1, _be32(code))))
    return _expression("immediate", attribute(1, _be32(0)), verdict)


def _number(port: int) -> bytes:
    value = _nest(2, attribute(1, struct.pack(">H", port)))
    return _expression("immediate", attribute(1, _be32(2)), value)


def _redirect_there() -> bytes:
    return _expression("redir", attribute(1, _be32(2)))


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nest(1, attribute(1, name.encode() + b"\0"), _nest(2, *attributes))


def _nest(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def request(kind: int, body: bytes) -> None:
    """Have the kernel make what a message of rtnetlink says. Raises OSError."""
    _exchange(socket.NETLINK_ROUTE, _message(kind, _REQUEST | _ACK | _CREATE, 1, body), 1)


def add_address(family: int, device: int, address: str, bits: int, scope: int = 0) -> None:
    """Give a device, by its index, one address more. Raises OSError."""
    packed = socket.inet_pton(family, address)
    body = struct.pack("=4BI", family, bits, _IFA_F_NODAD, scope, device)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    request(_RTM_NEWADDR, body)


def attribute(kind: int, data: bytes) -> bytes:
    """As netlink has one, with what fills it up."""
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _be32(value: int) -> bytes:
    return struct.pack(">i", value)


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _nf_message(
    kind: int, flags: int, sequence: int, family: int, body: bytes, resource: int = 0
) -> bytes:
    return _message(kind, flags, sequence, struct.pack(">BBH", family, 0, resource) + body)


def _exchange(protocol: int, request: bytes, last: int) -> None:
    """Send messages of netlink, and wait until number ``last`` is acknowledged. Raises OSError."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, protocol) as netlink:
        netlink.settimeout(_SECONDS)
        netlink.send(request)
        while not _acknowledged(netlink.recv(1 << 16), last):
            pass


def _acknowledged(answers: bytes, last: int) -> bool:
    """Raises OSError for the first that is an error."""
    at, found = 0, False
    while at + _HEADER.size <= len(answers):
        length, kind, _flags, sequence, _port = _HEADER.unpack_from(answers, at)
        if kind == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", answers, at + _HEADER.size)
            if code:
                raise OSError(-code, "a device, route or redirect was refused by the kernel")
            found = found or sequence == last
        at += max(length + 3 & ~3, _HEADER.size)
    return found
