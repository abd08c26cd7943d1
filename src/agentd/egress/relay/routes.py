"""Asks the kernel where an address leads: to this machine itself, to others, or nowhere.

By RTM_GETROUTE, which answers as connect(2) would decide it, whatever interfaces come and go:
addresses of interfaces, of bridges and of virtual networks are this machine's as well.
"""

import os
import socket
import struct
from typing import Self

_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=8BI")
_REQUEST, _ERROR = 1, 2
_RTM_GETROUTE = 26
_RTA_DST = 1
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_KINDS = {3: "broadcast", 4: "anycast", 5: "multicast", 6: "a black hole", 7: "unreachable",
          8: "prohibited"}  # fmt: skip


class KernelRoutes:
    """Made before the process is confined: afterwards it makes no such socket."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._netlink = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def hindrance(self, address: str) -> str:
        """Return why a connection may not go there: it is this machine, or nowhere; else empty."""
        try:
            kind = self._kind(address)
        except OSError as error:
            return f"{address} cannot be reached: {os.strerror(error.errno or 0)}"
        if kind == _RTN_UNICAST:
            return ""
        if kind == _RTN_LOCAL:
            return f"{address} is this host itself"
        return f"{address} is {_KINDS.get(kind, 'no place to connect to')}"

    def is_own(self, address: str) -> bool:
        """Return whether it is this machine's; False also where no route leads there."""
        try:
            return self._kind(address) == _RTN_LOCAL
        except OSError:
            return False

    def _kind(self, address: str) -> int:
        """The type of the route, RTN_*. Raises OSError where there is none.

        The kernel answers within the send: there is nothing to wait for.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        packed = socket.inet_pton(family, address)
        self._number = self._number + 1 & 0x7FFFFFFF
        route = _ROUTE.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
        attribute = struct.pack("=HH", 4 + len(packed), _RTA_DST) + packed
        length = _HEADER.size + len(route) + len(attribute)
        header = _HEADER.pack(length, _RTM_GETROUTE, _REQUEST, self._number, 0)
        self._netlink.send(header + route + attribute)
        while True:
            answer = self._netlink.recv(4096)
            _, kind, _, number, _ = _HEADER.unpack_from(answer)
            if number != self._number:
                continue
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", answer, _HEADER.size)
                raise OSError(-code, os.strerror(-code))
            return answer[_HEADER.size + 7]
