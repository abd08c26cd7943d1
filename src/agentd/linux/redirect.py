"""The redirect of a network namespace, as messages of nf_tables. Standard library only."""

import socket
import struct
from collections.abc import Iterable, Mapping

from agentd.linux.netlink import ACK, APPEND, CREATE, REQUEST, attribute, be32, message, nest

# linux/netfilter/nfnetlink.h, nf_tables.h
NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 16, 17
_NEWTABLE, _NEWCHAIN, _NEWRULE = _SUBSYSTEM | 0, _SUBSYSTEM | 3, _SUBSYSTEM | 6
_NEWSET = _SUBSYSTEM | 9
_HOOK_ARRIVING, _HOOK_OUTPUT = 0, 3
_PRIORITY_RAW, _PRIORITY_DNAT = -300, -100
_NETWORK_HEADER, _TRANSPORT_HEADER, _META_L4PROTO = 1, 2, 16
_SET_EVAL = 0x20
DROP, ACCEPT = 0, 1
_EQUAL, _NOT_EQUAL = 0, 1
_TABLE, _UNTRACKED, _REDIRECTED = b"agentd\0", b"untracked\0", b"redirected\0"
_ASKED = b"asked\0"
_TCP, _UDP = bytes((socket.IPPROTO_TCP,)), bytes((socket.IPPROTO_UDP,))
# Of IPv6 the kernel keeps a neighbour for each address that anything was sent to, half a KiB that
# nobody counts, until the device goes. So one may be asked by DNS only so many.
_MAX_ASKED = 64

# Families by their own numbers and by netfilter's, which are the same; where a packet has its
# destination, and what of that is the loopback's.
V4 = (socket.AF_INET, 16, b"\x7f")
V6 = (socket.AF_INET6, 24, b"\0" * 15 + b"\x01")
Family = tuple[socket.AddressFamily, int, bytes]


def batch(
    families: Iterable[Family], arriving: Mapping[int, str] | None, port: int, dns_port: int
) -> tuple[bytes, int]:
    """Returns the messages that set the redirect of these families, and the number of the one that
    is acknowledged. In one batch: it holds as a whole, or not at all.

    A table a family, with two chains. What comes of another than who may send is dropped. Of all
    but TCP no connections are tracked: entries are memory. What goes to the loopback is accepted as
    it is, all other TCP goes to ``port`` there. Of IPv6 little else leaves at all.
    """
    hook = _HOOK_OUTPUT if arriving is None else _HOOK_ARRIVING
    found = [_nf_message(_BATCH_BEGIN, REQUEST, 0, 0, b"", _SUBSYSTEM >> 8)]
    last = 0
    for family, offset, loopback in families:
        table = attribute(1, _TABLE)
        untracked = table + attribute(2, _UNTRACKED)
        other = nest(4, _load_protocol(), _compare(_NOT_EQUAL, _TCP), _expression("notrack"))
        redirected = table + attribute(2, _REDIRECTED)
        own = (_load(offset, len(loopback)), _compare(_EQUAL, loopback), _verdict(ACCEPT))
        rest = (_load_protocol(), _compare(_EQUAL, _TCP), _number(port), _redirect_there())
        strangers = []
        if arriving is not None:
            own_source = socket.inet_pton(family, arriving[family])
            # A packet's source stands right before its destination.
            from_others = (
                _load(offset - len(own_source), len(own_source)),
                _compare(_NOT_EQUAL, own_source),
                _verdict(DROP),
            )
            strangers = [(_NEWRULE, APPEND, untracked + nest(4, *from_others))]
        neighbours: list[tuple[int, int, bytes]] = []
        if arriving is None and family == socket.AF_INET6:
            neighbours = _few_neighbours(untracked, offset, loopback, dns_port)
        for kind, more, body in (
            (_NEWTABLE, 0, table),
            (_NEWCHAIN, 0, table + _chain(_UNTRACKED, b"filter\0", hook, _PRIORITY_RAW)),
            (_NEWCHAIN, 0, table + _chain(_REDIRECTED, b"nat\0", hook, _PRIORITY_DNAT)),
            *strangers,
            (_NEWRULE, APPEND, untracked + other),
            *neighbours,
            (_NEWRULE, APPEND, redirected + nest(4, *own)),
            (_NEWRULE, APPEND | ACK, redirected + nest(4, *rest)),
        ):
            last += 1
            found.append(_nf_message(kind, REQUEST | CREATE | more, last, family, body))
    found.append(_nf_message(_BATCH_END, REQUEST, last + 1, 0, b"", _SUBSYSTEM >> 8))
    return b"".join(found), last


def _few_neighbours(
    chain: bytes, offset: int, loopback: bytes, dns_port: int
) -> list[tuple[int, int, bytes]]:
    """The messages after which little goes to other addresses than the loopback's: TCP from the
    loopback, which is redirected there, and what is asked of so many nameservers. A TCP server
    would answer whoever has bound another address."""
    to_others = (_load(offset, len(loopback)), _compare(_NOT_EQUAL, loopback))
    from_others = (_load(offset - len(loopback), len(loopback)), _compare(_NOT_EQUAL, loopback))
    udp = (_load_protocol(), _compare(_EQUAL, _UDP))
    port = (_load(2, 2, _TRANSPORT_HEADER), _compare(_EQUAL, struct.pack(">H", dns_port)))
    known = (_load(offset, len(loopback)), _add_to(_ASKED), _verdict(ACCEPT))
    kept = attribute(1, _TABLE) + attribute(2, _ASKED) + attribute(3, be32(_SET_EVAL))
    kept += attribute(4, be32(0)) + attribute(5, be32(len(loopback))) + attribute(10, be32(1))
    kept += nest(9, attribute(1, be32(_MAX_ASKED)))
    return [
        (_NEWSET, 0, kept),
        *(
            (_NEWRULE, APPEND, chain + nest(4, *expressions))
            for expressions in (
                (*udp, *to_others, *port, *known),
                (_load_protocol(), _compare(_NOT_EQUAL, _TCP), *to_others, _verdict(DROP)),
                (_load_protocol(), _compare(_EQUAL, _TCP), *from_others, _verdict(DROP)),
            )
        ),
    ]


def _chain(name: bytes, kind: bytes, hook: int, priority: int) -> bytes:
    where = attribute(1, be32(hook)) + attribute(2, be32(priority))
    return attribute(3, name) + nest(4, where) + attribute(7, kind)


# Expressions of a rule: a name and attributes each. Register 1 has what is compared, 2 the port.


def _load(offset: int, length: int, header: int = _NETWORK_HEADER) -> bytes:
    """Load so many bytes of the IP header, or the one after it."""
    fields = (1, header, offset, length)
    return _expression("payload", *(attribute(n, be32(v)) for n, v in enumerate(fields, 1)))


def _load_protocol() -> bytes:
    return _expression("meta", attribute(2, be32(_META_L4PROTO)), attribute(1, be32(1)))


def _compare(operation: int, value: bytes) -> bytes:
    """Go on to the next rule where that does not hold for what was loaded."""
    how = attribute(1, be32(1)) + attribute(2, be32(operation))
    return _expression("cmp", how, nest(3, attribute(1, value)))


def _add_to(name: bytes) -> bytes:
    """Go on to the next rule where what was loaded is not in the set, and that is full."""
    return _expression(
        "dynset",
        *(attribute(1, name), attribute(2, be32(1)), attribute(3, be32(0))),
        attribute(4, be32(1)),
    )


def _verdict(code: int) -> bytes:
    verdict = nest(2, nest(2, attribute(1, be32(code))))
    return _expression("immediate", attribute(1, be32(0)), verdict)


def _number(port: int) -> bytes:
    value = nest(2, attribute(1, struct.pack(">H", port)))
    return _expression("immediate", attribute(1, be32(2)), value)


def _redirect_there() -> bytes:
    return _expression("redir", attribute(1, be32(2)))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nest(1, attribute(1, name.encode() + b"\0"), nest(2, *attributes))


def _nf_message(
    kind: int, flags: int, sequence: int, family: int, body: bytes, resource: int = 0
) -> bytes:
    return message(kind, flags, sequence, struct.pack(">BBH", family, 0, resource) + body)
