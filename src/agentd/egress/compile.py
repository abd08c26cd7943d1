"""From the texts of a sandbox's rules to the table that the relay decides by."""

import functools
import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import msgspec

from agentd.egress.table import PRIVATE
from agentd.model.egress import EgressBounds, EgressRule, Network, parse_rule, parse_rules

Wire = dict[str, Any]
_ONESELF = EgressBounds()


class Preset(msgspec.Struct, frozen=True):
    """``version`` grows with each change of ``rules``. ``source``: where its owner names them."""

    name: str
    version: int
    about: str
    source: str
    rules: tuple[str, ...]


def compile_table(texts: Sequence[str], bounds: EgressBounds = _ONESELF) -> Wire:
    """Return the table as JSON. Raises InvalidInput for a rule that is none."""
    rules: list[Wire] = []
    for rule in parse_rules(texts):
        rules += [_line(each, rule) for each in expanded(rule)]
    return {
        "rules": rules,
        "hosts": {host.name: [host.address, host.port] for host in bounds.hosts},
    }


def expanded(rule: EgressRule) -> tuple[EgressRule, ...]:
    """Return the rules of a preset, and any other as it is."""
    if not rule.preset:
        return (rule,)
    rules = (parse_rule(text) for text in preset(rule.preset).rules)
    if rule.allow:
        return tuple(rules)
    return tuple(msgspec.structs.replace(each, allow=False, ports=None) for each in rules)


@functools.cache
def preset(name: str) -> Preset:
    """Return one of ``model.egress.PRESETS``."""
    text = (resources.files("agentd.egress") / "presets" / f"{name}.toml").read_text()
    return msgspec.convert({"name": name, **tomllib.loads(text)}, Preset)


def _line(rule: EgressRule, written: EgressRule) -> Wire:
    wire: Wire = {"allow": rule.allow, "ports": None if rule.ports is None else list(rule.ports)}
    where = {"network": str(rule.network)} if rule.network else {"host": rule.host}
    return {**wire, **where, "text": written.text, "private": _private(rule, written)}


def _private(rule: EgressRule, written: EgressRule) -> bool:
    """Only what names one host, or networks that are private as a whole, reaches private addresses:
    no preset, no wildcard, and no network that is wider."""
    if rule.network is not None:
        return rule.allow and any(_within(rule.network, own) for own in PRIVATE)
    return rule.allow and not written.preset and not rule.host.startswith("*.")


def _within(network: Network, other: Network) -> bool:
    return network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]
