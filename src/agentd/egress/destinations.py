"""Where a program of agentd's own may be let that talks to hosts which those it talks to name: what
fetches images, with a registry's realms and redirects.

Whatever is public, at the usual ports; what its caller has named; and what rules allow besides.
The verdicts are those of a sandbox's network: a name is resolved here, every address is looked at,
and what is dialled is what was looked at.
"""

import re
import socket
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from agentd.egress import addresses
from agentd.egress.compile import compile_table, table_of
from agentd.egress.hostnames import HostFiles
from agentd.egress.relay.routes import KernelRoutes
from agentd.egress.relay.targets import hindrance
from agentd.egress.table import EgressTable, EgressVerdict
from agentd.model.egress import PUBLIC, THIS_HOST, USUAL_PORTS
from agentd.model.errors import InvalidInput

_MOST = 8  # addresses of one name that are looked at
_LOCALHOST, _LOOPBACK = "localhost", "127.0.0.1"
# A proxy is told it in a line of its own: nothing else may stand there.
# What is numbers at its end, as 127.1 and 0x7f000001, libraries of C take for an address.
_NAME = re.compile(r"(?!(.*\.)?([0-9]+|0x[0-9a-f]*)\Z)[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class Place(NamedTuple):
    """``host`` is a name, or an address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Barred(Exception):
    """Nobody is let there. ``grant`` is the rule that would allow it, "" where none may."""

    def __init__(self, reason: str, grant: str = "") -> None:
        super().__init__(reason)
        self.reason, self.grant = reason, grant


class Destinations:
    """Immutable."""

    def __init__(self, named: Iterable[Place], rules: Sequence[str] = ()) -> None:
        """``named`` may be private, and this machine itself; ``rules`` are as ``--net`` has them.

        Raises InvalidInput for a rule that is none, or is about more than who is reached.
        """
        self._named = frozenset(Place(_plain(place.host), place.port) for place in named)
        table = compile_table(rules)
        lines = [*table["rules"], *map(_line, self._named)]
        if "cassette" in table or any("http" in line or "ask" in line for line in lines):
            raise InvalidInput(
                "rules about requests, recordings and questions are for sandboxes",
                remediation="name hosts and ports alone, as --net auth.example.com:8443",
            )
        every = ({"host": "*"}, {"network": "0.0.0.0/0"}, {"network": "::/0"})
        lines += [_allowing(PUBLIC, USUAL_PORTS, private=False) | each for each in every]
        self._table = EgressTable(table_of(lines))
        #: Ports of this machine that rules open.
        self.own_ports = frozenset(
            port
            for line in lines
            if line["allow"] and line.get("host") == THIS_HOST
            for port in line["ports"]
            if self._table.of_name(THIS_HOST, port).allowed
        )

    def find(self, place: Place) -> list[str]:
        """Return the addresses at which it may be dialled, one at least. Raises Barred; OSError
        where no name server knows it, or the kernel does not say where they lead."""
        place = Place(_plain(place.host), place.port)
        literal = _literal(place.host)
        verdict = self._verdict(place)
        if literal is not None:
            found = [place.host]
        elif verdict.allowed or place.port in self.own_ports:
            found = resolved(place.host)
        else:
            raise _barred(verdict, place)
        barred, let = None, []
        for text in found:
            try:
                let.append(self._looked_at(text, place, verdict))
            except Barred as why:
                barred = barred or why
        if not let:
            raise barred or Barred(f"{place.host} has no address")
        return let

    def check_passed_on(self, place: Place) -> None:
        """Check what another resolves, and dials: as far as this machine knows where that is.
        Raises Barred, OSError."""
        place = Place(_plain(place.host), place.port)
        if _literal(place.host) is None and not _NAME.fullmatch(place.host):
            raise Barred(f"{place.host!r} is no name")
        verdict = self._verdict(place)
        if not verdict.allowed and _literal(place.host) is None:
            raise _barred(verdict, place)
        known = [place.host] if _literal(place.host) is not None else _of_hosts(place.host)
        if not known and _is_local(place.host):
            known = [_LOOPBACK]
        for text in known:
            self._looked_at(text, place, verdict)

    def _verdict(self, place: Place) -> EgressVerdict:
        literal = _literal(place.host)
        if literal is not None:
            return self._table.of_address(literal, place.port)
        return self._table.of_name(place.host, place.port)

    def _looked_at(self, text: str, place: Place, verdict: EgressVerdict) -> str:
        """Return the address to dial. Raises Barred, OSError."""
        ip = _literal(text)
        if ip is None:
            raise Barred(f"{text} is no address")
        with KernelRoutes() as routes:
            own = ip.is_loopback or (not addresses.never(ip) and routes.is_own(str(ip)))
            why = hindrance(str(ip), routes)
        if verdict.allowed:
            verdict = self._table.of_answer(verdict, ip, place.port)
        if _is_denied(verdict):
            raise _barred(verdict, place)
        if own:
            if place.port in self.own_ports or self._is_named_here(text, place):
                return str(ip)
            raise Barred(f"{ip} is this machine itself", f"{THIS_HOST}:{place.port}")
        if why:
            raise Barred(why)
        if not verdict.allowed:
            raise _barred(verdict, place)
        return str(ip)

    def _is_named_here(self, text: str, place: Place) -> bool:
        """Whether the caller named that place of this machine: its loopback by an address, or by a
        name that leads there by this machine's own word, and not by that of a name server."""
        if place not in self._named:
            return False
        ip = _literal(text)
        by_itself = (
            _is_local(place.host)
            or _literal(place.host) is not None
            or text in _of_hosts(place.host)
        )
        return by_itself or (ip is not None and not ip.is_loopback)


def _barred(verdict: EgressVerdict, place: Place) -> Barred:
    return Barred(verdict.reason, "" if _is_denied(verdict) else str(place))


def _is_denied(verdict: EgressVerdict) -> bool:
    """By a rule with ``!``, and not for want of one that allows it."""
    return verdict.reason == f"denied by {verdict.rule}"


def _line(place: Place) -> dict[str, Any]:
    literal = _literal(place.host)
    where = {"host": place.host} if literal is None else {"network": str(literal)}
    return _allowing(str(place), (place.port,), private=True) | where


def _allowing(text: str, ports: Iterable[int], *, private: bool) -> dict[str, Any]:
    return {"allow": True, "ports": list(ports), "text": text, "private": private}


def _is_local(host: str) -> bool:
    return host == _LOCALHOST or host.endswith(f".{_LOCALHOST}")  # RFC 6761


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")


def _literal(host: str) -> addresses.Address | None:
    try:
        return addresses.parse(host)
    except ValueError:
        return None


def _of_hosts(name: str) -> list[str]:
    return HostFiles().read().hosts.get(name, [])


def resolved(name: str) -> list[str]:
    """Return the first few addresses of a name, one at least. Raises OSError."""
    try:
        told = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except ValueError as error:  # by IDNA, or with a zero in it
        raise OSError(f"{name!r} is no name") from error
    found = dict.fromkeys(str(address[0]) for *_, address in told)
    return list(found)[:_MOST]
