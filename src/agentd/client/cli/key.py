"""``agentd key``: API keys of one's own."""

import argparse
from typing import TYPE_CHECKING

from agentd.client.cli import remote, table
from agentd.client.cli.parser import Parser
from agentd.model.errors import InvalidInput

if TYPE_CHECKING:
    from agentd.model.service import Keys

_CREATE_EXAMPLES = """\
  agentd key create --name ci --scopes run,create,read,files --ttl 90d
  AGENTD_API_KEY=$(agentd key create --name ci --scopes run,read -q) agentd ls
  agentd key create --name ci-2 --principal ci --scopes read     a second key of ci
"""
_EXAMPLES = f"""\
{_CREATE_EXAMPLES}  agentd key ls
  agentd key revoke abcdefgh2345

A key is shown when it is created and never again. It may do no more than you may.
Scopes: run, create, files, read, ports, snapshot; mount (folders of the host), net (its
network), egress (a network that rules restrict), volumes (folders of your own that outlive
sandboxes) and secrets (values that sandboxes use and never have), which a key has only where they
are named; approve, keys, admin.
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    if options.action == "create":
        options.scopes = _scopes(options)
    with remote.service(options) as service:
        return int(options.run(options, service.keys))


def _scopes(options: argparse.Namespace) -> tuple[str, ...]:
    """Return those of a new key, whose other values are judged, too. Raises InvalidInput."""
    from agentd.model.principal import SCOPES
    from agentd.model.units import parse_duration

    scopes = tuple(part for text in options.scopes for part in text.split(",") if part)
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if not options.name or not scopes or unknown:
        what = f"unknown scope {unknown[0]!r}" if unknown else "a key needs --name and --scopes"
        raise InvalidInput(what, remediation=f"the scopes are: {', '.join(SCOPES)}")
    if options.ttl is not None:
        parse_duration(options.ttl, "--ttl")
    return scopes


def _create(options: argparse.Namespace, keys: "Keys") -> int:
    made = keys.create(options.name, options.scopes, ttl=options.ttl, principal=options.principal)
    if options.quiet:
        return remote.tell(options, made, str(made.secret))
    facts = [
        ("id", made.id),
        ("acts as", made.principal),
        ("scopes", ", ".join(made.scopes)),
        ("ends", table.until(made.expires)),
        ("key", made.secret),
    ]
    return table.tell_facts(options, made, facts)


def _list(options: argparse.Namespace, keys: "Keys") -> int:
    found = keys.list()
    rows = [
        (
            key.id,
            key.name,
            key.principal,
            "revoked" if key.revoked else table.until(key.expires),
            table.ago(key.created),
            "-" if key.last_used is None else table.ago(key.last_used),
            ",".join(key.scopes),
        )
        for key in found
    ]
    headings = ("ID", "NAME", "ACTS AS", "ENDS", "CREATED", "USED", "SCOPES")
    return table.tell(options, found, headings, rows)


def _revoke(options: argparse.Namespace, keys: "Keys") -> int:
    keys.revoke(options.id)
    return remote.tell(options, {"revoked": options.id})


def _parser() -> Parser:
    parser = Parser(
        prog="agentd key",
        description="Make, list and revoke API keys.",
        epilog=f"examples:\n{_EXAMPLES}",
    )
    actions = parser.actions(remote.daemon_options)
    create = actions.add("create", "make one, and print it", _CREATE_EXAMPLES, _create)
    create.add_argument("--name", metavar="NAME", help="of the key")
    create.add_argument(
        "--scopes", metavar="SCOPE,...", action="append", default=[], help="what it allows"
    )
    create.add_argument(
        "--principal", metavar="NAME", help="as whom it acts, for an admin (default: its own name)"
    )
    create.add_argument("--ttl", metavar="TIME", help="how long it holds, as 90d")
    create.add_argument("-q", "--quiet", action="store_true", help="print only the key")
    actions.add("ls", "list them, without what is secret", "  agentd key ls\n", _list)
    about, example = "let one do nothing any more", "  agentd key revoke abcdefgh2345\n"
    actions.add("revoke", about, example, _revoke).add_argument("id", metavar="ID", help="its id")
    return parser
