"""The verdicts of a sandbox's rules, pure: may this name be resolved, may this be dialled?

It runs in the relay: standard library alone. A table is plain JSON, made by ``compile``:

    {"rules": [{"allow": true, "host": "*.example.com", "ports": [443, 80], "text": "pypi",
                "private": false},
               {"allow": true, "network": "10.0.0.0/8", "ports": null, "text": "10.0.0.0/8:*",
                "private": true}],
     "hosts": {"db.internal": ["127.0.0.1", 5432], "host.agentd.internal": ["127.0.0.1", 0]},
     "terminated": ["api.example.com"]}

``cassette`` is "record" or "replay" where it is there: all connections to names are read then, and
to be replayed none is dialled. ``budget``, where it is there, is what its connections may move
(``relay.budget``).
``host`` "*" is every name, ``ports`` null every port; ``text`` is the rule as it was written;
``private`` says whether it reaches addresses that are somebody's own. With ``"ask": true`` what it
allows has to be asked about, unless another rule allows it. A rule of requests has
``"http": {"methods": ["GET"] or null, "path": "/v1/*"}``; connections that only such rules allow,
or that one forbids some requests of, are read, and so are those to hosts of ``terminated``, at port
443 or the one that is said. Which addresses nobody reaches is not said here. A host of port 0 is
all ports of that address, of which a rule allows those that it has. What allows one of ``hosts`` is
a rule by its whole name alone, no wildcard and no preset.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, NamedTuple

from agentd.egress import addresses
from agentd.egress.paths import RequestPath

Address = IPv4Address | IPv6Address
TLS_PORT = 443

#: Somebody's own networks (RFC 1918, 6598, 4193): reached where a rule names them alone.
PRIVATE = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv4Network("100.64.0.0/10"),
    IPv6Network("fc00::/7"),
)


class EgressVerdict(NamedTuple):
    """``rule`` is the text of the rule that decided, or "" where none did; ``reason`` says why it
    is refused. ``private``: the rule reaches private addresses. ``read``: each request that goes
    over the connection is judged, by ``of_request``. ``ask``: it is allowed once somebody who was
    asked has said so; until then nothing leaves."""

    allowed: bool
    rule: str = ""
    reason: str = ""
    private: bool = False
    read: bool = False
    ask: bool = False


class _Http(NamedTuple):
    methods: frozenset[str] | None
    path: str

    def has_method(self, method: str) -> bool:
        return self.methods is None or method in self.methods


class _Line(NamedTuple):
    allow: bool
    ports: frozenset[int] | None
    text: str
    private: bool
    http: _Http | None = None
    ask: bool = False

    def has(self, port: int) -> bool:
        return self.ports is None or port in self.ports


class EgressTable:
    """Immutable: a change of the rules is another table."""

    def __init__(self, wire: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError for what ``compile`` does not make."""
        self.wire = wire
        self.records = wire.get("cassette") == "record"
        #: Nothing is dialled: what is asked is answered from a cassette.
        self.replays = wire.get("cassette") == "replay"
        self._exact: dict[str, list[_Line]] = {}
        self._below: dict[str, list[_Line]] = {}
        self._every: list[_Line] = []
        self._networks: list[tuple[IPv4Network | IPv6Network, _Line]] = []
        self._terminated = frozenset(wire.get("terminated", ()))
        self._static = {name: (str(to[0]), int(to[1])) for name, to in wire["hosts"].items()}
        for rule in wire["rules"]:
            ports = None if rule["ports"] is None else frozenset(rule["ports"])
            http = _http(rule.get("http"))
            ask = rule.get("ask", False) and not self.replays  # nothing leaves
            line = _Line(rule["allow"], ports, rule["text"], rule["private"], http, ask)
            if "network" in rule:
                self._networks.append((ip_network(rule["network"]), line))
            elif rule["host"] == "*":
                self._every.append(line)
            elif rule["host"].startswith("*."):
                self._below.setdefault(rule["host"][2:], []).append(line)
            else:
                self._exact.setdefault(rule["host"], []).append(line)

    def of_question(self, name: str) -> EgressVerdict:
        """Judge that a name is asked for: whether some connection to it could be allowed."""
        allowed: _Line | None = None
        for line in self._lines(_normal(name)):
            if not line.allow and line.ports is None and line.http is None:
                return EgressVerdict(False, line.text, f"denied by {line.text}")
            if line.allow and (allowed is None or allowed.ask):
                allowed = line
        if allowed is None:
            return EgressVerdict(False, "", "no rule allows that name")
        return EgressVerdict(True, allowed.text, ask=allowed.ask)

    def has_whole(self, name: str) -> bool:
        """Return whether a rule has that very name, and no wildcard alone."""
        name = _normal(name)
        return name in self._exact or name in self._static

    def of_name(self, name: str, port: int) -> EgressVerdict:
        """Judge a connection to that name. Where it goes is judged by ``of_answer`` then."""
        name = _normal(name)
        verdict = _judge(list(self._lines(name)), port, f"no rule has {name}")
        if verdict.allowed and (self._has_cassette or self.is_terminated(name, port)):
            return verdict._replace(read=True)
        return verdict

    def is_terminated(self, name: str, port: int) -> bool:
        """Return whether connections there are read for a credential's sake."""
        return (name if port == TLS_PORT else f"{name}:{port}") in self._terminated

    @property
    def _has_cassette(self) -> bool:
        return self.records or self.replays

    @property
    def reads(self) -> bool:
        """Return whether some connection is read."""
        lines = [self._every, *self._exact.values(), *self._below.values()]
        terminated = self._has_cassette or bool(self._terminated)
        return terminated or any(each.http for some in lines for each in some)

    def of_request(self, name: str, port: int, method: str, path: RequestPath) -> EgressVerdict:
        """Judge a request of a connection that ``of_name`` has read."""
        allowed: _Line | None = None
        lines = [line for line in self._lines(_normal(name)) if line.has(port)]
        if any(line.allow and not line.ask for line in lines):  # nobody was asked
            lines = [line for line in lines if not line.ask]
        for line in lines:
            http = line.http
            if line.allow:
                if http is None or (http.has_method(method) and path.is_in(http.path)):
                    allowed = allowed or line
            elif http is None or (http.has_method(method) and path.touches(http.path)):
                return EgressVerdict(False, line.text, f"denied by {line.text}", read=True)
        if allowed is None:
            reason = f"no rule allows {method} {path.readings[0]}"
            return EgressVerdict(False, "", reason, read=True)
        return EgressVerdict(True, allowed.text, private=allowed.private, read=True)

    def of_address(self, ip: Address, port: int) -> EgressVerdict:
        """Judge a connection to a number that a program dialled."""
        address = _plain(ip)
        lines = list(self._at(address))
        if is_private(addresses.judged(address)):
            lines = [line for line in lines if line.private or not line.allow]
        return _judge(lines, port, f"no rule has the address {address}")

    def asks(self, dialled: str, port: int) -> bool:
        """Return whether a connection to what was dialled, a name or an address, is asked about."""
        try:
            address = addresses.parse(dialled)
        except ValueError:
            return self.of_name(dialled, port).ask
        return self.of_address(address, port).ask

    def of_answer(self, named: EgressVerdict, ip: Address, port: int) -> EgressVerdict:
        """Judge an address that a name, which ``of_name`` allowed, was resolved to."""
        address = _plain(ip)
        lines = list(self._at(address))
        for line in lines:
            if not line.allow and line.has(port):
                return EgressVerdict(False, line.text, f"denied by {line.text}")
        address = addresses.judged(address)
        if not is_private(address) or named.private:
            return named
        for line in lines:
            if line.private and line.has(port) and not line.ask:
                return named
        reason = f"{address} is private, and no rule names it, or the host by its whole name"
        return EgressVerdict(False, named.rule, reason)

    def static(self, name: str, port: int = 0) -> tuple[str, int] | None:
        """Return the address and port that connections to ``port`` of that name go to, where the
        operator says so: they are dialled unjudged."""
        found = self._static.get(_normal(name))
        return found if found is None or found[1] else (found[0], port)

    def _lines(self, name: str) -> Iterator[_Line]:
        lines = self._all_lines(name)
        if name in self._static:
            return (line for line in lines if line.private or not line.allow)
        return lines

    def _all_lines(self, name: str) -> Iterator[_Line]:
        if name:
            yield from self._every
        yield from self._exact.get(name, ())
        rest = name.partition(".")[2]
        while rest:
            yield from self._below.get(rest, ())
            rest = rest.partition(".")[2]

    def _at(self, address: Address) -> Iterator[_Line]:
        """What has that address; through NAT64 it is the IPv4 one, and IPv6 can be denied too."""
        inner = addresses.judged(address)
        for network, line in self._networks:
            if _within(inner, network) or (not line.allow and _within(address, network)):
                yield line


def _within(address: Address, network: IPv4Network | IPv6Network) -> bool:
    return network.version == address.version and address in network


def is_private(address: Address) -> bool:
    return any(_within(address, own) for own in PRIVATE)


def _judge(lines: Iterable[_Line], port: int, none: str) -> EgressVerdict:
    allowed: _Line | None = None
    asked: _Line | None = None
    whole = some_denied = False
    ports: set[int] = set()
    for line in lines:
        if not line.allow and line.has(port) and line.http is not None:
            some_denied = True
        elif not line.allow and line.has(port):
            return EgressVerdict(False, line.text, f"denied by {line.text}")
        if line.ask and line.has(port):
            asked = line if asked is None or line.private else asked
        elif line.allow and line.has(port):
            # One that reaches private addresses says more than one that does not.
            allowed = line if allowed is None or line.private else allowed
            whole = whole or line.http is None
        elif line.allow:
            ports |= line.ports or frozenset()
    if allowed is not None:
        read = some_denied or not whole
        return EgressVerdict(True, allowed.text, private=allowed.private, read=read)
    if asked is not None:
        return EgressVerdict(True, asked.text, private=asked.private, read=some_denied, ask=True)
    if ports:
        told = ", ".join(map(str, sorted(ports)))
        return EgressVerdict(False, "", f"port {port} is not among {told}")
    return EgressVerdict(False, "", none)


def _http(wire: Mapping[str, Any] | None) -> _Http | None:
    if wire is None:
        return None
    methods = wire["methods"]
    return _Http(None if methods is None else frozenset(methods), wire["path"])


def _normal(name: str) -> str:
    return name.lower().removesuffix(".")


def _plain(address: Address) -> Address:
    """An IPv4 address that came as ::ffff:1.2.3.4 is that IPv4 address."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped
