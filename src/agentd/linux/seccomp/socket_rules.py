"""Which sockets can be made: local ones, TCP, UDP and ICMP, and what tells of interfaces."""

import errno

from agentd.linux.seccomp.rule import ASK, ArgumentMatch, Rule

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_LOCAL_AND_INET = (_AF_UNIX, _AF_INET, _AF_INET6)
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_RAW, _SOCK_PACKET = 1, 2, 3, 10
_SOCK_TYPE_MASK = 0xF  # linux/net.h: the bits above are SOCK_CLOEXEC and SOCK_NONBLOCK
_PROTOCOLS = (0, 1, 6, 17, 58)  # default (and PF_UNIX), ICMP (and PF_UNIX), TCP, UDP, ICMPv6
_NETLINK_ROUTE = 0

_RAW = Rule(
    "sockets",
    "socket socketpair",
    "raw sockets forge packets and read those of others",
    (
        ArgumentMatch(0, "family", _LOCAL_AND_INET),
        ArgumentMatch(1, "type", (_SOCK_RAW, _SOCK_PACKET), _SOCK_TYPE_MASK),
    ),
)
_TYPES = Rule(
    "sockets",
    "socket socketpair",
    "the other internet socket types load SCTP and DCCP, seldom-tested kernel code",
    (
        ArgumentMatch(0, "family", (_AF_INET, _AF_INET6)),
        ArgumentMatch(1, "type", (_SOCK_STREAM, _SOCK_DGRAM), _SOCK_TYPE_MASK, inside=False),
    ),
    errno.ESOCKTNOSUPPORT,
)
_OTHER_PROTOCOLS = Rule(
    "sockets",
    "socket socketpair",
    "SCTP, SMC and the rest are seldom tested, and they and MPTCP pass Landlock's TCP rules",
    (ArgumentMatch(2, "protocol", _PROTOCOLS, inside=False),),
    errno.EPROTONOSUPPORT,
)

#: Where the network namespace is shared with others, or of no use.
SOCKETS = (
    Rule(
        "sockets",
        "socket",
        "netlink tells of the interfaces, routes and neighbours of whose network it is; "
        "EOPNOTSUPP is what ZeroMQ goes on after, which any other answer aborts",
        (ArgumentMatch(0, "family", (_AF_NETLINK,)),),
        errno.EOPNOTSUPP,
    ),
    Rule(
        "sockets",
        "socket socketpair",
        "packet, netlink, vsock, AF_ALG and the rest reach the host or seldom-tested kernel code",
        (ArgumentMatch(0, "family", _LOCAL_AND_INET, inside=False),),
        errno.EAFNOSUPPORT,
    ),
    _RAW,
    _TYPES,
    _OTHER_PROTOCOLS,
)

#: Where the network namespace is the sandbox's own. What NETLINK_ROUTE changes takes
#: CAP_NET_ADMIN in the user namespace that the network belongs to, and nobody inside has that.
SOCKETS_AND_ROUTES = (
    Rule(
        "sockets",
        "socket",
        "the other netlink protocols reach auditing, netfilter, IPsec and generic families, "
        "seldom-tested kernel code; NETLINK_ROUTE tells of its own interfaces, and passes",
        (
            ArgumentMatch(0, "family", (_AF_NETLINK,)),
            ArgumentMatch(2, "protocol", (_NETLINK_ROUTE,), inside=False),
        ),
        errno.EPROTONOSUPPORT,
    ),
    Rule(
        "sockets",
        "socket",
        "answers that nobody reads stay in memory that no control group counts, up to 8 MiB a "
        "socket: the agent lets a sandbox have a few at a time",
        (ArgumentMatch(0, "family", (_AF_NETLINK,)),),
        ASK,
    ),
    Rule(
        "sockets",
        "socket",
        "packet, vsock, AF_ALG and the rest reach the host or seldom-tested kernel code",
        (ArgumentMatch(0, "family", (*_LOCAL_AND_INET, _AF_NETLINK), inside=False),),
        errno.EAFNOSUPPORT,
    ),
    Rule(
        "sockets",
        "socketpair",
        "no other family has pairs: none is tried",
        (ArgumentMatch(0, "family", _LOCAL_AND_INET, inside=False),),
        errno.EAFNOSUPPORT,
    ),
    _RAW,
    _TYPES,
    _OTHER_PROTOCOLS,
)

#: Added to any profile whose wall has no network namespace and promises no network.
NO_INET = Rule(
    "sockets",
    "socket socketpair",
    "no network was granted, and Landlock governs TCP alone",
    (ArgumentMatch(0, "family", (_AF_INET, _AF_INET6)),),
)
