"""``agentd receipt``: what a receipt says, and whether it holds."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

from agentd.client.cli import kept, output, params, remote
from agentd.client.cli.parser import Parser, named
from agentd.client.http.errors import Unreachable
from agentd.model.errors import InvalidInput, NotFound
from agentd.model.system import os_errors_as
from agentd.model.units import counted

if TYPE_CHECKING:
    from agentd.audit.receipt import Statement
    from agentd.model.result import Usage
    from agentd.model.service import Receipts

T = TypeVar("T")

_EXAMPLES = """\
examples:
  agentd receipt show req-0123456789abcdef
  agentd receipt show req-0123456789abcdef --raw > receipt.json
  agentd receipt key > receipt.pub
  agentd receipt verify receipt.json --key receipt.pub

A receipt's id is its request's. It is asked of the daemon, where one answers; else it is looked for
in the daemon's files, and among those of calls without a daemon (--embedded). Verifying needs the
public key and nothing else: no daemon, no log.
"""
_MAX_FILE = 1 << 20
_WHERE = "correct the path"


def main(words: list[str]) -> int:
    return _parser().run(words)


def _parser() -> Parser:
    parser = Parser(
        prog="agentd receipt",
        description="Look at a signed receipt of an execution, and verify it offline.",
        epilog=_EXAMPLES,
    )
    actions = parser.actions(remote.json_option)
    show = actions.add(
        "show",
        "print what a receipt says",
        "  agentd receipt show req-0123456789abcdef\n"
        "  agentd receipt show req-0123456789abcdef --raw > receipt.json\n",
        _show,
    )
    show.add_argument("id", metavar="ID", help="of a request, as results have it")
    show.add_argument("--raw", action="store_true", help="the signed envelope as it is")
    about = "print the public key that receipts verify with"
    key = actions.add("key", about, "  agentd receipt key > receipt.pub\n", _key)
    for each in (show, key):
        kept.options(each, "receipts")
        each.add_argument("--url", metavar="URL", help=remote.URL_HELP)
    example = "  agentd receipt verify receipt.json --key receipt.pub\n"
    verify = actions.add("verify", "check a receipt's signature", example, _verify)
    about = "the envelope, or - for standard input"
    verify.add_argument("file", type=named, metavar="FILE", help=about)
    about = "who must have signed"
    verify.add_argument("--key", type=named, metavar="PUBLIC.pem", required=True, help=about)
    return parser


def _show(options: argparse.Namespace) -> int:
    from agentd.audit import receipt

    envelope = _asked(options, lambda receipts: receipts.get(options.id))
    if envelope is None:
        envelope = _found(options)
    if options.raw:
        sys.stdout.buffer.write(envelope + b"\n")
        sys.stdout.flush()
    else:
        _print(receipt.peek(envelope), as_json=options.json)
    return 0


def _key(options: argparse.Namespace) -> int:
    answer = _asked(options, lambda receipts: receipts.key())
    if answer is None:
        answer = _kept_key(options)
    return remote.tell(options, {"key": answer}, answer.removesuffix("\n"))


def _kept_key(options: argparse.Namespace) -> str:
    directory = kept.directory(options, "receipts", "receipt")
    path = os.path.join(os.path.dirname(os.path.abspath(directory)), "receipt.key.pub")
    fix = (
        "it lies beside the receipts' directory, from the first one on: name that with --dir, or "
        "their daemon with --url"
    )
    return params.read(path, fix, _MAX_FILE).decode()


def _asked(options: argparse.Namespace, ask: "Callable[[Receipts], T]") -> T | None:
    """Ask a daemon; None where none is to be asked, or the usual one does not know it."""
    from agentd.client.http import address
    from agentd.client.http.service import alone

    if options.url and (options.dir or options.embedded):
        raise InvalidInput("--url goes without --dir and --embedded", remediation="drop one")
    if options.dir or options.embedded:
        return None
    named = address.given(options.url)
    where = named or address.default()
    if where is None:
        return None
    try:
        with closing(alone(where)) as service:
            return ask(service.receipts)
    except (NotFound, Unreachable):
        if named:
            raise
        return None


def _found(options: argparse.Namespace) -> bytes:
    from agentd.audit import receipts

    looked = []
    for directory, whose in kept.directories(options, "receipts"):
        looked.append(directory)
        if whose and not os.path.exists(directory):
            continue  # there was no call yet
        with os_errors_as(
            InvalidInput,
            f"cannot read the receipts in {directory}",
            "name their directory with --dir, or their daemon with --url",
        ):
            envelope = receipts.find(directory, options.id)
        if envelope is not None:
            if whose and not options.embedded:
                output.say(f"found in {directory}, {whose}", "receipt")
            return envelope
    raise NotFound(
        f"there is no receipt {options.id!r} in {' or '.join(looked)}",
        remediation="its id is its request's; the oldest are dropped in time",
    )


def _verify(options: argparse.Namespace) -> int:
    from agentd.audit import receipt

    envelope, key = (params.read(p, _WHERE, _MAX_FILE) for p in (options.file, options.key))
    statement = receipt.verify(envelope, key)
    if not options.json:
        print(f"the signature holds: {options.key} signed this")
    _print(statement, as_json=options.json)
    return 0


def _network(usage: "Usage") -> "Iterator[tuple[str, str]]":
    """What its sandbox did of a network of rules."""
    from agentd.model.result import NetworkUsage

    done = usage.network
    if not isinstance(done, NetworkUsage):
        return
    asked = f", {done.asked} asked about" if done.asked else ""
    how = {"record": ", all recorded", "replay": " answered from a cassette"}.get(done.cassette, "")
    what = f"{counted(done.allowed, 'connection')}{how}, {done.denied} refused{asked}"
    yield "network", f"{what}, {counted(done.sent, 'byte')} sent, {done.received} received"
    for host, count in done.hosts.items():
        yield f"connected to {host}", str(count)


def _print(statement: "Statement", *, as_json: bool) -> None:
    from agentd.client.cli import table

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
            *_network(told.usage),
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
