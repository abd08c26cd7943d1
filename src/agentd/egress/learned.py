"""The shortest rules that allow what a sandbox connected to."""

from collections.abc import Iterable
from ipaddress import ip_address

from agentd.egress.compile import preset
from agentd.model.egress import PRESETS, USUAL_PORTS, parse_rule
from agentd.model.network import ConnectionView

_ENOUGH = 2  # hosts of a preset that were reached: one alone is named by itself


def shortest(connections: Iterable[ConnectionView]) -> tuple[str, ...]:
    """Return presets first, then hosts by name and by number; no rule twice, none by a wildcard."""
    wanted = {
        (each.name or each.address, each.port)
        for each in connections
        if each.port is not None and not each.method and (each.name or each.address)
    }
    rules: list[str] = []
    for name in PRESETS:
        opened = {pair for pair in wanted if _opens(name, *pair)}
        if len({host for host, _ in opened}) >= _ENOUGH:
            rules.append(name)
            wanted -= opened
    hosts: dict[str, set[int]] = {}
    for host, port in wanted:
        hosts.setdefault(host, set()).add(port)
    for host, ports in sorted(hosts.items()):
        if not _is_address(host) and ports <= set(USUAL_PORTS):
            rules.append(host)
        else:
            where = f"[{host}]" if ":" in host else host
            rules += [f"{where}:{port}" for port in sorted(ports)]
    return tuple(rules)


def _opens(name: str, host: str, port: int) -> bool:
    rules = map(parse_rule, preset(name).rules)
    return any(rule.host == host and (not rule.ports or port in rule.ports) for rule in rules)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
