"""From the texts of a sandbox's rules to the table that the relay decides by."""

import functools
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import msgspec

from agentd.egress import addresses
from agentd.egress.table import PRIVATE as PRIVATE_NETWORKS
from agentd.model import http_match
from agentd.model.egress import (
    ASK_PUBLIC,
    LEARN,
    PRIVATE,
    PUBLIC,
    REPLAY,
    THIS_HOST,
    EgressBounds,
    EgressRule,
    Network,
    cassette,
    parse_rule,
    parse_rules,
)
from agentd.model.errors import InvalidInput, Refused
from agentd.model.secret import SecretBinding
from agentd.model.typed import convert

Wire = dict[str, Any]
_ONESELF = EgressBounds()
_LOOPBACK = "127.0.0.1"


class Preset(msgspec.Struct, frozen=True):
    """``version`` grows with each change of ``rules``. ``source``: where its owner names them."""

    name: str
    version: int
    about: str
    source: str
    rules: tuple[str, ...]


def compile_table(
    texts: Sequence[str], bounds: EgressBounds = _ONESELF, secrets: Sequence[SecretBinding] = ()
) -> Wire:
    """Return the table as JSON; connections to hosts of ``secrets`` are read. Raises InvalidInput
    for a rule that is none, Refused for one that is more than ``bounds``."""
    word = cassette(texts)
    # What is replayed is dialled by nobody, so that nothing of it has to be granted.
    allow = None if word == REPLAY else bounds.allow
    operator = None if allow is None else OperatorRules(allow)
    lines: list[Wire] = []
    for written in parse_rules(text for text in texts if text != word):
        for rule in expanded(written):
            _check_grantable(rule)
            private = _private(rule, written)
            if operator is not None and rule.allow:
                private = operator.check(rule, written) and private
            lines.append(_line(rule, written.text, private))
    if operator is not None:
        lines += [_line(rule, text, False) for rule, text in operator.denied]
    # A wildcard does not name the operator's own hosts, whatever it matches.
    named = {line["host"] for line in lines if line["private"] and "host" in line}
    hosts = {host.name: [host.address, host.port] for host in bounds.hosts if host.name in named}
    table = table_of(lines, hosts)
    if word:
        table["cassette"] = word
    if secrets:
        table["terminated"] = sorted({host for each in secrets for host in each.hosts})
    if bounds.net_bytes is not None or bounds.net_rate is not None:
        table["budget"] = {"bytes": bounds.net_bytes, "rate": bounds.net_rate}
    return table


def table_of(lines: Sequence[Wire], hosts: Mapping[str, Any] | None = None) -> Wire:
    """Return the table of rules that were compiled, and of the operator's ``hosts``."""
    known = dict(hosts or {})
    if any(line.get("host") == THIS_HOST and line["private"] for line in lines):
        known[THIS_HOST] = [_LOOPBACK, 0]  # the port that was dialled
    return {"rules": list(lines), "hosts": known}


def _check_grantable(rule: EgressRule) -> None:
    """Raises InvalidInput for what no rule can allow: to be told is better than to be refused."""
    if rule.network is None or not rule.allow:
        return
    first, last = rule.network[0], rule.network[-1]
    why = addresses.never(first).partition(" ")[2]
    if not why or why != addresses.never(last).partition(" ")[2]:
        return
    fix = "leave it out"
    if first.is_loopback:
        fix += ": a sandbox has its own; this machine's is for [[egress.host]]"
    raise InvalidInput(
        f"network rule {rule.text!r} is nobody's to grant: it {why}", remediation=fix
    )


class OperatorRules:
    """What an operator lets be granted: ``PUBLIC``, ``PRIVATE``, and rules."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._public, self._private = PUBLIC in texts, PRIVATE in texts
        rules = [
            (rule, written)
            for written in parse_rules(text for text in texts if text not in (PUBLIC, PRIVATE))
            for rule in expanded(written)
        ]
        self._allowed = [pair for pair in rules if pair[0].allow]
        self.denied = [(rule, written.text) for rule, written in rules if not rule.allow]

    def check(self, asked: EgressRule, written: EgressRule) -> bool:
        """Return whether it may reach private addresses too. Raises Refused for more than this."""
        if asked.host == THIS_HOST:
            of_it = [rule.ports for rule, _ in self._allowed if rule.host == THIS_HOST]
            if asked.ports not in of_it:
                raise self._refused(written)
            return True
        if self._private and _private(asked, written):
            return True
        ports: tuple[int | None, ...] = (None,) if asked.ports is None else asked.ports
        if all(self._has(asked, port, private=True) for port in ports):
            return True
        if not all(self._has(asked, port, private=False) for port in ports):
            raise self._refused(written)
        return False

    def _refused(self, written: EgressRule) -> Refused:
        return Refused(
            f"network rule {written.text!r} is not allowed here",
            cause=f"what may be granted is {', '.join(self._texts) or 'nothing'}",
            remediation="leave it out, or have it added to egress.allow",
        )

    def _has(self, asked: EgressRule, port: int | None, *, private: bool) -> bool:
        if not private and self._public and not _of_private_network(asked):
            return True
        return any(
            _covers(rule, asked)
            and (rule.ports is None or port in rule.ports)
            and (not private or _private(rule, written))
            for rule, written in self._allowed
        )


def expanded(rule: EgressRule) -> tuple[EgressRule, ...]:
    """Return the rules of a preset, of ``LEARN`` or ``ASK_PUBLIC``, and any other as it is. Raises
    InvalidInput where a preset that is asked about has requests."""
    if rule.text in (LEARN, ASK_PUBLIC):
        networks = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
        every = (EgressRule(rule.text, network=network, ask=rule.ask) for network in networks)
        return rule, *every
    if not rule.preset:
        return (rule,)
    rules = [parse_rule(text) for text in preset(rule.preset).rules]
    if rule.ask and any(each.path for each in rules):
        raise InvalidInput(
            f"network rule {rule.text!r} asks about requests",
            remediation="ask about the hosts that are meant, as ask github.com",
        )
    if rule.allow:
        return tuple(msgspec.structs.replace(each, ask=rule.ask) for each in rules)
    # All of them: what of a host the preset would have allowed makes no difference.
    none = {"allow": False, "ports": None, "methods": None, "path": ""}
    return tuple(msgspec.structs.replace(each, **none) for each in rules)


@functools.cache
def preset(name: str) -> Preset:
    """Return one of ``model.egress.PRESETS``."""
    text = (resources.files("agentd.egress") / "presets" / f"{name}.toml").read_text()
    return convert({"name": name, **tomllib.loads(text)}, Preset)


def _line(rule: EgressRule, text: str, private: bool) -> Wire:
    wire: Wire = {"allow": rule.allow, "ports": None if rule.ports is None else list(rule.ports)}
    where = {"network": str(rule.network)} if rule.network else {"host": rule.host}
    if rule.path:
        methods = None if rule.methods is None else list(rule.methods)
        wire["http"] = {"methods": methods, "path": rule.path}
    if rule.ask:
        wire["ask"] = True
    return {**wire, **where, "text": text, "private": private}


def _private(rule: EgressRule, written: EgressRule) -> bool:
    """Only what names one host, or networks that are private as a whole, reaches private addresses:
    no preset, no wildcard, and no network that is wider."""
    if rule.network is not None:
        return rule.allow and _of_private_network(rule)
    return rule.allow and not written.preset and not rule.host.startswith("*")


def _of_private_network(rule: EgressRule) -> bool:
    network = rule.network
    return network is not None and any(_within(network, own) for own in PRIVATE_NETWORKS)


def _covers(rule: EgressRule, asked: EgressRule) -> bool:
    """Return whether all that ``asked`` names is in ``rule``, whatever their ports."""
    return _covers_host(rule, asked) and _covers_requests(rule, asked)


def _covers_requests(rule: EgressRule, asked: EgressRule) -> bool:
    if not rule.path:
        return True
    methods = rule.methods is None or set(asked.methods or ("",)) <= set(rule.methods)
    return bool(asked.path) and methods and http_match.within(asked.path, rule.path)


def _covers_host(rule: EgressRule, asked: EgressRule) -> bool:
    if rule.network is not None or asked.network is not None:
        both = rule.network is not None and asked.network is not None
        return both and _within(asked.network, rule.network)  # type: ignore[arg-type]
    if rule.host == asked.host:
        return True
    below = rule.host[1:] if rule.host.startswith("*.") else None
    return below is not None and asked.host.removeprefix("*").endswith(below)


def _within(network: Network, other: Network) -> bool:
    return network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]
