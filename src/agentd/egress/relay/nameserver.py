"""Answers what sandboxes ask by DNS, each at its own socket.

A name that no rule allows does not exist, and is asked of nobody. One that a rule could allow is
asked of the host's servers, and answered with an address that stands for the name. Other kinds of
records are answered with none: HTTPS records would give clients keys that hide the name they dial.
"""

import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from agentd.egress.relay import dns, synthetic
from agentd.egress.relay.records import Reports
from agentd.egress.relay.resolver import MAX_TTL, MIN_TTL, Resolved, Resolver
from agentd.egress.relay.targets import Finder
from agentd.egress.relay.tenant import Tenant

_TURNS = 32  # queries, then others have their turn
_MAX_QUERY = 1024  # a question and EDNS's options, which are not read
_PKTINFO = {socket.AF_INET: (socket.IPPROTO_IP, 8), socket.AF_INET6: (socket.IPPROTO_IPV6, 50)}
_SPACE = socket.CMSG_SPACE(20)
#: Characters in a name that a wildcard allows: enough for hosts, little for data.
MAX_WILD_NAME = 150


class _Asker(NamedTuple):
    """Who asked, and the control message that has an answer come from the address it asked."""

    sock: socket.socket
    place: tuple[str, int]
    source: list[tuple[int, int, bytes]]


class NameServer:
    def __init__(self, resolver: Resolver, finder: Finder, reports: Reports) -> None:
        self._resolver = resolver
        self._finder = finder
        self._reports = reports

    def handler(self, tenant: Tenant, sock: socket.socket) -> Callable[[int], None]:
        """What reads the queries that are at ``sock``, a UDP socket that tells who was asked."""
        return lambda _mask: self._read(tenant, sock)

    def _read(self, tenant: Tenant, sock: socket.socket) -> None:
        for _ in range(_TURNS):
            try:
                query, told, _flags, place = sock.recvmsg(_MAX_QUERY, _SPACE)
            except BlockingIOError:
                return
            except OSError:  # what a send met: whoever asked is gone
                continue
            self._answer(tenant, query, _Asker(sock, place, _source(sock, told)))

    def _answer(self, tenant: Tenant, query: bytes, asker: _Asker) -> None:
        try:
            asked = dns.parse_query(query)
        except dns.Malformed as error:
            number = dns.number_of(query)
            if number is not None:
                _send(asker, dns.refusal(number, error.code))
            return
        code, address, ttl = self._known(tenant, asked, asker)
        if code is not None:
            _send(asker, dns.answer(asked, code, address, ttl))

    def _known(
        self, tenant: Tenant, asked: dns.Asked, asker: _Asker
    ) -> tuple[int | None, bytes, int]:
        """The code, address and seconds to answer with; no code where the answer is sent later."""
        name = asked.name
        if not tenant.table.may_resolve(name):
            self._deny(tenant, name, "no rule allows that name")
            return dns.NXDOMAIN, b"", 0
        if asked.kind not in (dns.A, dns.AAAA):
            return dns.NOERROR, b"", 0
        if asked.kind == dns.AAAA and not tenant.has_ipv6:
            return dns.NOERROR, b"", 0
        static = tenant.table.static(name)
        if static is not None:
            return (dns.NOERROR, *self._published(tenant, asked, MAX_TTL, static[0]))
        if tenant.is_wild(name) and len(name) > MAX_WILD_NAME:
            self._deny(tenant, name, f"the name is over {MAX_WILD_NAME} characters")
            return dns.NXDOMAIN, b"", 0
        resolved = self._resolver.known(name, asked.kind)
        if resolved is not None:
            return self._of(tenant, asked, asker, resolved)
        self._ask(tenant, asked, asker, asked.kind, self._of)
        return None, b"", 0

    def _ask(
        self,
        tenant: Tenant,
        asked: dns.Asked,
        asker: _Asker,
        kind: int,
        then: "Callable[[Tenant, dns.Asked, _Asker, Resolved], tuple[int | None, bytes, int]]",
    ) -> None:
        if not tenant.may_ask(self._resolver.loop.now):
            self._deny(tenant, asked.name, "too many names were asked for at once")
            _send(asker, dns.answer(asked, dns.SERVFAIL))
            return

        def done(resolved: Resolved) -> None:
            if tenant.closed:
                return
            code, address, ttl = then(tenant, asked, asker, resolved)
            if code is not None:
                _send(asker, dns.answer(asked, code, address, ttl))

        self._resolver.ask(asked.name, kind, done)

    def _of(
        self, tenant: Tenant, asked: dns.Asked, asker: _Asker, resolved: Resolved
    ) -> tuple[int | None, bytes, int]:
        """The answer that follows from what the host's servers say."""
        if resolved.code == dns.NOERROR and not resolved.addresses and asked.kind == dns.A:
            # A host of IPv6 alone is reached by its IPv4 address here: it is dialled by name.
            other = self._resolver.known(asked.name, dns.AAAA)
            if other is None:
                self._ask(tenant, asked, asker, dns.AAAA, self._published_if_any)
                return None, b"", 0
            resolved = other
        return self._published_if_any(tenant, asked, asker, resolved)

    def _published_if_any(
        self, tenant: Tenant, asked: dns.Asked, _asker: _Asker, resolved: Resolved
    ) -> tuple[int | None, bytes, int]:
        if resolved.code != dns.NOERROR or not resolved.addresses:
            return resolved.code, b"", 0
        whys = [self._finder.hindrance(address) for address in resolved.addresses]
        if all(whys):
            self._deny(tenant, asked.name, whys[0])
            return dns.NXDOMAIN, b"", 0
        seconds = int(resolved.until - self._resolver.loop.now)
        ttl = min(max(seconds, MIN_TTL), MAX_TTL)
        address, ttl = self._published(tenant, asked, ttl, "")
        return (dns.NOERROR if address else dns.SERVFAIL), address, ttl

    def _published(
        self, tenant: Tenant, asked: dns.Asked, ttl: int, _static: str
    ) -> tuple[bytes, int]:
        number = tenant.synthetic.give(asked.name, wild=tenant.is_wild(asked.name))
        if number is None:
            self._deny(tenant, asked.name, "too many different names were asked for")
            return b"", 0
        family = socket.AF_INET if asked.kind == dns.A else socket.AF_INET6
        return synthetic.packed(number, family), ttl

    def _deny(self, tenant: Tenant, name: str, reason: str) -> None:
        row: dict[str, object] = {"sandbox": tenant.id, "name": name, "address": "", "port": None}
        row |= {"rule": "", "allowed": False, "reason": reason, "ended": True}
        self._reports.denied(tenant, (name, None, reason), row)


def _source(
    sock: socket.socket, told: list[tuple[int, int, bytes]]
) -> list[tuple[int, int, bytes]]:
    """The control message of an answer: from the address that the query was sent to."""
    level, kind = _PKTINFO[socket.AddressFamily(sock.family)]
    for found, type_, data in told:
        if (found, type_) == (level, kind):
            # in_pktinfo: interface, source, destination; in6_pktinfo: address, interface
            info = struct.pack("=I4s4s", 0, data[8:12], b"") if level == 0 else data[:16] + bytes(4)
            return [(level, kind, info)]
    return []


def _send(asker: _Asker, answer: bytes) -> None:
    try:
        asker.sock.sendmsg([answer], asker.source, socket.MSG_DONTWAIT, asker.place)
    except OSError:
        return  # it is lost, as datagrams are: whoever asked asks again
