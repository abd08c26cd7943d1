"""``agentd approval``: requests that wait for somebody to allow them."""

import argparse
from typing import TYPE_CHECKING

from agentd.client.cli import remote, table
from agentd.client.cli.parser import Parser
from agentd.model.errors import InvalidInput

if TYPE_CHECKING:
    from agentd.model.api import ApprovalView
    from agentd.model.service import Approvals

_EXAMPLES = """\
  agentd approval ls
  agentd approval show apr-0199c5d2a3f0deadbeef
  agentd approval approve apr-0199c5d2a3f0deadbeef --note 'as agreed'
  agentd approval deny apr-0199c5d2a3f0deadbeef
  agentd approval withdraw apr-0199c5d2a3f0deadbeef

To decide takes the scope approve, and never on one's own request. What nobody decides on in
time is refused.
"""
_SHOWN = 60  # characters of parameters, in a line of the list


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    if options.note and options.action not in ("approve", "deny"):
        raise InvalidInput("--note is for a decision", remediation="drop --note")
    if options.id and options.action == "ls":
        raise InvalidInput("ls takes no approval", remediation=f"agentd approval show {options.id}")
    if not options.id and options.action != "ls":
        raise InvalidInput("no approval given", remediation="agentd approval ls has their ids")
    with remote.service(options) as service:
        if options.action == "ls":
            return _list(options, service.approvals)
        if options.action == "show":
            return _show(options, service.approvals)
        return _change(options, service.approvals)


def _list(options: argparse.Namespace, approvals: "Approvals") -> int:
    found = approvals.list()
    rows = [
        (
            view.id,
            view.state,
            view.principal,
            table.until(view.expires) if view.state == "pending" else "-",
            what(view),
        )
        for view in found
    ]
    return table.tell(options, found, ("ID", "STATE", "WHO", "ENDS", "ASKED"), rows)


def _show(options: argparse.Namespace, approvals: "Approvals") -> int:
    view = approvals.get(options.id)
    if options.json:
        remote.print_json(view)
        return 0
    table.facts(
        [
            ("id", view.id),
            ("state", view.state),
            ("who", view.principal),
            ("request", view.request),
            ("asked", table.ago(view.created)),
            ("ends", table.until(view.expires) if view.state == "pending" else "-"),
            ("decided by", view.decided_by or "-"),
            ("note", view.note or "-"),
        ]
    )
    for line in _json(view.asked, indent=2).splitlines():
        print(remote.safe(line))
    return 0


def _change(options: argparse.Namespace, approvals: "Approvals") -> int:
    if options.action == "withdraw":
        view = approvals.withdraw(options.id)
    else:
        allow = options.action == "approve"
        view = approvals.decide(options.id, allow=allow, note=options.note)
    return remote.tell(options, view, f"{remote.safe(view.id)} {view.state}")


def what(view: "ApprovalView") -> str:
    """Return in a few words what was asked for: a connection's host and port, a call's parameters
    as far as they fit."""
    asked = view.asked
    parameters = asked.get("parameters", asked)
    words = where(view) or _json(parameters)[:_SHOWN]
    sandbox = f"in {asked['sandbox']}" if asked.get("sandbox") else ""
    return " ".join(filter(None, (asked.get("capability", ""), words, sandbox)))


def where(view: "ApprovalView") -> str:
    """Return the host and port of a connection that waits, or "" for anything else."""
    if view.asked.get("capability") != "network.connect":
        return ""
    host, port = (view.asked["parameters"][name] for name in ("host", "port"))
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _json(value: object, indent: int = -1) -> str:
    """On one line, unless it is indented."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value), indent=indent).decode()


def _parser() -> Parser:
    parser = remote.parser("approval", "Look at requests that wait, and decide.", _EXAMPLES)
    parser.action(
        {
            "ls": "list them",
            "show": "show all about one",
            "approve": "let one go on",
            "deny": "refuse one",
            "withdraw": "take back one's own",
        }
    )
    parser.add_argument("id", metavar="ID", nargs="?", help="of the approval")
    parser.add_argument("--note", metavar="TEXT", default="", help="why, for who asked")
    return parser
