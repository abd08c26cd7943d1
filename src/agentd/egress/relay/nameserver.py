"""Answers what sandboxes ask by DNS, each at its own socket.

A name that no rule allows does not exist, and is asked of nobody. One that a rule could allow is
asked of the host's servers, and answered with an address that stands for the name; one that has to
be asked about is answered so without that. Other kinds of records are answered with none: HTTPS
records would give clients keys that hide the name they dial.
"""

import contextlib
import socket
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from agentd.egress.relay import dns, synthetic
from agentd.egress.relay.dns import DnsQuestion
from agentd.egress.relay.records import Reports
from agentd.egress.relay.resolver import MAX_TTL, MIN_TTL, Resolved, Resolver
from agentd.egress.relay.targets import Finder
from agentd.egress.relay.tenant import Tenant
from agentd.linux import anyip

_TURNS = 32  # queries, then others have their turn
MAX_QUERY = 1024  # a question and EDNS's options, which are not read
#: Characters in a name that a wildcard allows: enough for hosts, little for data.
MAX_WILD_NAME = 150
_TOO_MANY = "too many different names were asked for"


class Asker(Protocol):
    """Whoever is to have the answer to a query."""

    def answer(self, message: bytes) -> None:
        """Send it. Never raises: what cannot be sent is lost, as datagrams are, and asked again."""


class _UdpAsker(NamedTuple):
    """Who asked, and the control message that has an answer come from the address it asked."""

    sock: socket.socket
    place: tuple[str, int]
    source: list[tuple[int, int, bytes]]

    def answer(self, message: bytes) -> None:
        with contextlib.suppress(OSError):
            self.sock.sendmsg([message], self.source, socket.MSG_DONTWAIT, self.place)


# The code, address and seconds to answer with; no code where the answer is sent later.
_Said = tuple[int | None, bytes, int]
_Then = Callable[[Tenant, DnsQuestion, Asker, Resolved], _Said]


class NameServer:
    def __init__(self, resolver: Resolver, finder: Finder, reports: Reports) -> None:
        self._resolver = resolver
        self._finder = finder
        self._reports = reports

    def handler(self, tenant: Tenant, sock: socket.socket) -> Callable[[int], None]:
        """Return what reads the queries at ``sock``, a UDP socket that tells who was asked."""
        return lambda _mask: self._read(tenant, sock)

    def _read(self, tenant: Tenant, sock: socket.socket) -> None:
        for _ in range(_TURNS):
            try:
                query, told, _flags, place = sock.recvmsg(MAX_QUERY, anyip.PKTINFO_SPACE)
            except BlockingIOError:
                return
            except OSError:  # what a send met: whoever asked is gone
                continue
            self.ask(tenant, query, _UdpAsker(sock, place, anyip.source(sock, told)))

    def ask(self, tenant: Tenant, query: bytes, asker: Asker) -> None:
        """Let ``asker`` get the answer, now or later; none where it is no query at all."""
        try:
            asked = dns.parse_query(query)
        except dns.MalformedDns as error:
            number = dns.number_of(query)
            if number is not None:
                asker.answer(dns.refusal(number, error.code))
            return
        code, address, ttl = self._known(tenant, asked, asker)
        if code is not None:
            asker.answer(dns.answer(asked, code, address, ttl))

    def _known(self, tenant: Tenant, asked: DnsQuestion, asker: Asker) -> _Said:
        name = asked.name
        verdict = tenant.table.of_question(name)
        if not verdict.allowed:
            self._deny(tenant, name, verdict.reason, verdict.rule)
            return dns.NXDOMAIN, b"", 0
        if asked.kind not in (dns.A, dns.AAAA):
            return dns.NOERROR, b"", 0
        if asked.kind == dns.AAAA and not tenant.has_ipv6:
            return dns.NOERROR, b"", 0
        if tenant.table.replays or tenant.table.static(name) is not None:
            return self._published(tenant, asked, MAX_TTL)
        if tenant.is_wild(name) and len(name) > MAX_WILD_NAME:
            self._deny(tenant, name, f"the name is over {MAX_WILD_NAME} characters")
            return dns.NXDOMAIN, b"", 0
        if verdict.ask:  # who answers for it is asked nothing before a connection is allowed
            return self._published(tenant, asked, MIN_TTL)
        resolved = self._resolver.known(name, asked.kind)
        if resolved is None:
            self._ask(tenant, asked, asker, asked.kind, self._of)
            return None, b"", 0
        return self._of(tenant, asked, asker, resolved)

    def _ask(
        self, tenant: Tenant, asked: DnsQuestion, asker: Asker, kind: int, then: _Then
    ) -> None:
        if not tenant.may_ask(self._resolver.loop.now):
            self._deny(tenant, asked.name, "too many names were asked for at once")
            asker.answer(dns.answer(asked, dns.SERVFAIL))
            return
        if not tenant.may_ask_for(asked.name):
            self._deny(tenant, asked.name, _TOO_MANY)
            asker.answer(dns.answer(asked, dns.SERVFAIL))
            return

        tenant.asking += 1

        def done(resolved: Resolved) -> None:
            tenant.asking -= 1
            if tenant.closed:
                return
            code, address, ttl = then(tenant, asked, asker, resolved)
            if code is not None:
                asker.answer(dns.answer(asked, code, address, ttl))

        self._resolver.ask(asked.name, kind, done)

    def _of(self, tenant: Tenant, asked: DnsQuestion, asker: Asker, resolved: Resolved) -> _Said:
        """What follows from what the host's servers say."""
        if resolved.code != dns.NOERROR or asked.kind == dns.AAAA or self._usable(resolved):
            return self._of_last(tenant, asked, asker, resolved)
        # A host of IPv6 alone has an IPv4 address here all the same: it is dialled by its name.
        other = self._resolver.known(asked.name, dns.AAAA)
        if other is None:
            last: _Then = self._of_last
            if resolved.addresses:
                last = partial(self._of_better, resolved)
            self._ask(tenant, asked, asker, dns.AAAA, last)
            return None, b"", 0
        return self._of_better(resolved, tenant, asked, asker, other)

    def _of_better(
        self, first: Resolved, tenant: Tenant, asked: DnsQuestion, asker: Asker, second: Resolved
    ) -> _Said:
        better = second if self._usable(second) or not first.addresses else first
        return self._of_last(tenant, asked, asker, better)

    def _of_last(
        self, tenant: Tenant, asked: DnsQuestion, _asker: Asker, resolved: Resolved
    ) -> _Said:
        if resolved.code != dns.NOERROR or not resolved.addresses:
            return resolved.code, b"", 0
        if not self._usable(resolved):
            # No such address, and not no such name: there may be one of the other family.
            if asked.kind == dns.A:
                self._deny(tenant, asked.name, self._finder.hindrance(resolved.addresses[0]))
            return dns.NOERROR, b"", 0
        seconds = int(resolved.until - self._resolver.loop.now)
        return self._published(tenant, asked, max(seconds, MIN_TTL))

    def _usable(self, resolved: Resolved) -> bool:
        return not all(self._finder.hindrance(address) for address in resolved.addresses)

    def _published(self, tenant: Tenant, asked: DnsQuestion, ttl: int) -> _Said:
        fresh = not tenant.synthetic.has(asked.name)
        number = tenant.synthetic.give(asked.name, wild=tenant.is_wild(asked.name))
        if number is None:
            self._deny(tenant, asked.name, _TOO_MANY)
            return dns.SERVFAIL, b"", 0
        if fresh:
            self._reports.named(tenant, asked.name)
        family = socket.AF_INET if asked.kind == dns.A else socket.AF_INET6
        return dns.NOERROR, synthetic.packed(number, family), ttl

    def _deny(self, tenant: Tenant, name: str, reason: str, rule: str = "") -> None:
        row: dict[str, object] = {"sandbox": tenant.id, "name": name, "address": "", "port": None}
        row |= {"rule": rule, "allowed": False, "reason": reason, "ended": True}
        self._reports.denied(tenant, (name, None, reason), row)
