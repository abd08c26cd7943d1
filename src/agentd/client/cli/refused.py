"""What a sandbox's network refused while a command ran, for who wonders why it failed."""

import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from agentd.client.cli import output, table
from agentd.client.cli.remote import safe
from agentd.model.egress import LEARN, RECORD, REPLAY, THIS_HOST
from agentd.model.errors import AgentdError

if TYPE_CHECKING:
    from agentd.client.ports import Service
    from agentd.model.api import SandboxView
    from agentd.model.network import ConnectionPage, ConnectionView

_SHOWN = 5
_FORBIDDEN = 403  # by a rule; what no rule can mend has another status


def tell(service: "Service", view: "SandboxView", *, failed: bool, verbose: bool) -> None:
    """Tell it in a line on stderr: where the command failed, and for a person at a terminal."""
    if view.net == "restricted" and LEARN in view.egress:
        with suppress(AgentdError):
            output.say(learned(service.network.connections(view.id)))
        return
    if view.net != "restricted" or not (failed or verbose or table.is_terminal(sys.stderr)):
        return
    with suppress(AgentdError):  # it has ended: there is nobody to ask
        line = said(service.network.connections(view.id), view.egress)
        if line:
            output.say(line, colour=output.YELLOW)


def learned(page: "ConnectionPage") -> str:
    """Name the rules that would do in place of ``--net learn``."""
    from agentd.egress.learned import shortest

    rules = shortest(page.connections)
    if not rules:
        return "it connected to nothing: --net none would do"
    return safe(f"what it connected to is allowed by --net {_quoted(','.join(rules))}")


def said(page: "ConnectionPage", egress: Iterable[str]) -> str:
    """Name what was refused, why, and the rules that would have allowed it; "" for nothing."""
    refused = {_where(each): each for each in page.connections if not each.allowed and each.ended}
    if not refused:
        return ""
    shown = [f"{where} ({each.reason})" for where, each in list(refused.items())[:_SHOWN]]
    more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    egress = tuple(egress)
    line = f"the network refused {', '.join(shown)}{more}"
    lacking = [each for each in refused.values() if _can_be_allowed(each)]
    if REPLAY in egress:  # of a host that it names the cassette lacks an answer, and no rule
        lacking = [e for e in lacking if not (e.method and f"{e.name}:{e.port}" in egress)]
    missing = [_rule(each) for each in lacking][:_SHOWN]
    if REPLAY in egress:
        fresh = ",".join(dict.fromkeys(text for text in (*egress, *missing) if text != REPLAY))
        return safe(f"{line}; record it with --net {_quoted(f'record:FILE,{fresh}')}")
    if missing and not more:
        rules = ",".join(dict.fromkeys([*egress, *missing]))
        rules = re.sub(rf"\b{RECORD}\b", f"{RECORD}:FILE", rules, count=1)
        line += f"; allow what should be with --net {_quoted(rules)}"
    return safe(line)


def _where(each: "ConnectionView") -> str:
    host = each.name or each.address
    if each.method:
        return f"{each.method} {host}{each.path}"
    return host if each.port is None else f"{_bracketed(host)}:{each.port}"


def _can_be_allowed(each: "ConnectionView") -> bool:
    """Not what a rule forbids; nor where a service is said to be, as apt asks of its mirrors
    (_http._tcp.deb.debian.org): that is no address, and goes without an answer."""
    if each.method:
        return not each.rule and each.status == _FORBIDDEN
    return not each.rule and not (each.port is None and each.name.startswith("_"))


def _rule(each: "ConnectionView") -> str:
    """The rule that would have allowed it."""
    from agentd.egress.paths import rule_of_request

    if each.method:
        return rule_of_request(each.method, each.name, each.port, each.path)
    if each.port is None and each.name == THIS_HOST:
        return f"{each.name}:PORT"  # which one it would have been nobody was told
    if each.port is None or (each.name and each.port in (80, 443)):
        return each.name
    return f"{_bracketed(each.name or each.address)}:{each.port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _quoted(rules: str) -> str:
    import shlex

    return shlex.quote(rules)
