"""``agentd receipt``: what a receipt says, and whether it holds."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from agentd.client.cli.options import Parser
from agentd.model.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from agentd.audit.receipt import Statement

_EXAMPLES = """\
examples:
  agentd receipt show req-0123456789abcdef
  agentd receipt show req-0123456789abcdef --raw > receipt.json
  agentd receipt verify receipt.json --key receipt.key.pub

A receipt's id is its request's. Verifying needs the public key and nothing else: no daemon, no log.
"""
_MAX_FILE = 1 << 20


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    return int(options.run(options))


def _parser() -> Parser:
    parser = Parser(
        prog="agentd receipt",
        description="Look at a signed receipt of an execution, and verify it offline.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    show = commands.add_parser("show", help="print one that is kept here", allow_abbrev=False)
    show.add_argument("id", metavar="ID")
    show.add_argument("--raw", action="store_true", help="the signed envelope as it is")
    show.add_argument("--dir", metavar="DIR", help="of the receipts (default: the daemon's)")
    show.set_defaults(run=_show)
    verify = commands.add_parser("verify", help="check the signature", allow_abbrev=False)
    verify.add_argument("file", metavar="FILE", help="the envelope, or - for standard input")
    verify.add_argument("--key", metavar="PUBLIC.pem", required=True, help="who must have signed")
    verify.set_defaults(run=_verify)
    for each in (show, verify):
        each.add_argument("--json", action="store_true", help="print the statement as JSON")
    return parser


def _show(options: argparse.Namespace) -> int:
    from agentd.audit import receipt, receipts

    directory = options.dir or _default()
    try:
        envelope = receipts.find(directory, options.id)
    except OSError as error:
        raise InvalidInput(
            f"cannot read the receipts in {directory}",
            cause=error.strerror or "",
            remediation="name their directory with --dir",
        ) from error
    if envelope is None:
        raise NotFound(
            f"there is no receipt {options.id!r} in {directory}",
            remediation="its id is its request's; the oldest are dropped in time",
        )
    if options.raw:
        sys.stdout.buffer.write(envelope + b"\n")
        sys.stdout.flush()
    else:
        _print(receipt.peek(envelope), as_json=options.json)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from agentd.audit import receipt

    statement = receipt.verify(_read(options.file), _read(options.key))
    if not options.json:
        print(f"the signature holds: {options.key} signed this")
    _print(statement, as_json=options.json)
    return 0


def _default() -> str:
    from agentd.client import embedded

    return os.path.join(embedded.state_directory(), "receipts")


def _read(path: str) -> bytes:
    """A bounded file. Raises InvalidInput."""
    if path == "-":
        return sys.stdin.buffer.read(_MAX_FILE)
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_FILE)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}", cause=error.strerror or "") from error


def _print(statement: "Statement", *, as_json: bool) -> None:
    from agentd.client.cli import remote, table

    if as_json:
        remote.print_json(statement)
        return
    told, record = statement.predicate.execution, statement.predicate.record
    code = told.exit_code if told.signal is None else f"signal {told.signal}"
    table.facts(
        [
            ("request", told.request),
            ("principal", told.principal),
            ("capability", told.capability or "-"),
            ("sandbox", f"{told.sandbox} ({told.backend}, {told.level})"),
            ("image", told.image_digest or "-"),
            ("code", told.code_digest or "-"),
            ("input", told.input_digest or "-"),
            *((f"output {name}", digest) for name, digest in sorted(told.outputs.items())),
            ("policy", f"{'allowed' if told.decision.allow else 'denied'} {told.decision.bundle}"),
            *(("reason", reason) for reason in told.decision.reasons),
            ("cause", f"{told.cause.code}, {code}"),
            ("took", f"{told.usage.wall_ms:.1f} ms, {told.usage.cpu_ms:.1f} ms of CPU"),
            ("audit", record),
        ]
    )
    rows = [
        (name, "yes" if control.enforced else "NO", control.asked, control.detail)
        for name, control in told.enforcement.items()
    ]
    if rows:
        print()
        table.show(("CONTROL", "IN FORCE", "ASKED", "HOW"), rows)
