"""Where a connection that a rule allows may be made to: every address is looked at, then dialled.

A name is resolved here, not by the sandbox, and what is dialled is what was looked at: an answer
that changes meanwhile changes nothing.
"""

import socket
from collections.abc import Callable
from typing import NamedTuple

from agentd.egress import addresses
from agentd.egress.relay import dns
from agentd.egress.relay.resolver import Resolved, Resolver
from agentd.egress.relay.routes import KernelRoutes
from agentd.egress.table import EgressTable, EgressVerdict

_MOST = 4  # addresses of one name that are tried


class Targets(NamedTuple):
    """``places`` to dial, the first first; where there are none ``reason`` says why, ``refused``
    where a rule or an address did, and not the network. ``missing``: there is no such name."""

    places: tuple[tuple[str, int], ...]
    reason: str = ""
    refused: bool = False
    missing: bool = False


Found = Callable[[Targets], None]


def hindrance(address: str, routes: KernelRoutes) -> str:
    """Return why nobody may be let there, whatever the rules say; empty where a rule may."""
    try:
        found = addresses.parse(address)
    except ValueError:
        return f"{address} is no address"
    if why := addresses.never(found):
        return why
    # The routes of IPv6 say nothing of where an IPv4 address within one of IPv6 leads.
    inner = addresses.judged(found)
    if inner != found and routes.is_own(str(inner)):
        return f"{inner} is this host itself"
    return routes.hindrance(str(found))


class Finder:
    def __init__(self, resolver: Resolver, routes: KernelRoutes) -> None:
        self._resolver = resolver
        self._routes = routes

    def of_number(self, address: str, port: int) -> Targets:
        """Find the targets of an address that a rule allows by its number."""
        if why := self.hindrance(address):
            return Targets((), why, refused=True)
        return Targets(((address, port),))

    def of_name(
        self, table: EgressTable, verdict: EgressVerdict, name: str, port: int, found: Found
    ) -> Targets | None:
        """Return the places of a name, or None and call ``found`` with them later: once, and with
        what ``table`` said now."""
        static = table.static(name, port)
        if static is not None:
            return Targets((static,))
        judge = _Judge(self, table, verdict, name, port)
        resolved = self._resolver.known(name, dns.A)
        if resolved is None:
            self._resolver.ask(name, dns.A, lambda answer: self._second(judge, answer, found))
            return None
        return self._of_v4(judge, resolved, found)

    def hindrance(self, address: str) -> str:
        """Return why nobody may be let there, whatever the rules say; empty where a rule may."""
        return hindrance(address, self._routes)

    def _second(self, judge: "_Judge", resolved: Resolved, found: Found) -> None:
        targets = self._of_v4(judge, resolved, found)
        if targets is not None:
            found(targets)

    def _of_v4(self, judge: "_Judge", resolved: Resolved, found: Found) -> Targets | None:
        targets = judge.targets(resolved)
        if targets.places or resolved.code != dns.NOERROR:
            return targets
        other = self._resolver.known(judge.name, dns.AAAA)
        if other is None:
            last = targets
            self._resolver.ask(
                judge.name, dns.AAAA, lambda answer: found(_better(judge.targets(answer), last))
            )
            return None
        return _better(judge.targets(other), targets)


def _better(second: Targets, first: Targets) -> Targets:
    return first if first.refused and not second.places else second


class _Judge(NamedTuple):
    finder: Finder
    table: EgressTable
    verdict: EgressVerdict
    name: str
    port: int

    def targets(self, resolved: Resolved) -> Targets:
        if resolved.code == dns.NXDOMAIN:
            return Targets((), f"there is no {self.name}", missing=True)
        if resolved.code != dns.NOERROR:
            return Targets((), f"no name server says what {self.name} is")
        places: list[tuple[str, int]] = []
        reason = f"{self.name} has no address"
        refused = False
        for address in resolved.addresses:
            if len(places) == _MOST:
                break
            if why := self._why_not(address):
                reason, refused = why, True
            else:
                places.append((address, self.port))
        return Targets(tuple(places), "" if places else reason, refused and not places)

    def _why_not(self, address: str) -> str:
        if why := self.finder.hindrance(address):
            return why
        found = addresses.parse(address)
        verdict = self.table.of_answer(self.verdict, found, self.port)
        return "" if verdict.allowed else verdict.reason


def spelled(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
