"""``agentd audit``: the log of what was done, read from its files."""

import argparse
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from agentd.client.cli import kept
from agentd.client.cli.options import Parser
from agentd.model.errors import InvalidInput

if TYPE_CHECKING:
    from agentd.audit.verify import Verdict

_EXAMPLES = """\
examples:
  agentd audit tail
  agentd audit tail -n 100 --json | jq .kind
  agentd audit tail -f
  agentd audit verify
  agentd audit verify --head 1042:9f2c...          a place that was kept elsewhere
  agentd audit export --from 1000 --out audit.jsonl

It is the daemon's log, where there is one, else that of calls without a daemon (--embedded).
verify ends with 0 where all is as it was written, with 1 where it is not.
"""
_FOUND_WRONG = 1
_FIRST = ("cause", "exit_code", "undecided", "reasons")


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    return int(options.run(options, kept.directory(options, "audit", "audit")))


def _parser() -> Parser:
    parser = Parser(
        prog="agentd audit",
        description="Look at the audit log, verify that nothing was taken from it, export it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    tail = commands.add_parser("tail", help="print the latest records", allow_abbrev=False)
    tail.add_argument("-n", metavar="N", type=_number, default=20, help="how many (default: 20)")
    tail.add_argument("-f", "--follow", action="store_true", help="wait for more")
    tail.set_defaults(run=_tail)
    verify = commands.add_parser("verify", help="check every record", allow_abbrev=False)
    verify.add_argument(
        "--head", metavar="SEQ:HASH", help="a record that must be there, from a receipt, say"
    )
    verify.set_defaults(run=_verify)
    export = commands.add_parser("export", help="write records as they are", allow_abbrev=False)
    export.add_argument("--from", dest="first", metavar="SEQ", type=_number, default=1)
    export.add_argument("--to", dest="last", metavar="SEQ", type=_number)
    export.add_argument("--out", metavar="FILE", help="a new file (default: standard output)")
    export.set_defaults(run=_export)
    for each in (tail, verify):
        each.add_argument("--json", action="store_true", help="print JSON")
    for each in (tail, verify, export):
        kept.options(each, "log")
    return parser


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 19):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _tail(options: argparse.Namespace, directory: str) -> int:
    from agentd.audit import read
    from agentd.audit.record import decode

    found = read.tail(directory, options.n)
    if options.json:
        _write(found)
    else:
        from agentd.client.cli import table

        headings = ("SEQ", "TIME", "KIND", "PRINCIPAL", "SANDBOX", "REQUEST", "ABOUT")
        table.show(headings, [_row(decode(line)) for line in found])
    if options.follow:
        _follow(options, directory, decode(found[-1]).seq + 1 if found else 1)
    return 0


def _follow(options: argparse.Namespace, directory: str, first: int) -> None:
    from agentd.audit import read
    from agentd.audit.record import decode
    from agentd.client.cli.remote import safe

    for line in read.follow(directory, first):
        if options.json:
            _write([line])
        else:
            print("  ".join(safe(cell) for cell in _row(decode(line))), flush=True)


def _row(record: Any) -> tuple[str, ...]:
    time = record.time[:19].replace("T", " ")
    return (
        str(record.seq),
        time,
        record.kind,
        record.principal or "-",
        record.sandbox or "-",
        record.request or "-",
        _about(record),
    )


def _about(record: Any) -> str:
    """A few words: the capability, why, and the fields that are short."""
    words = [record.capability] if record.capability else []
    fields = dict(record.fields)
    for name in _FIRST:
        value = fields.pop(name, None)
        if name == "cause" and isinstance(value, dict):
            value = value.get("code")
        if name == "reasons" and isinstance(value, list):
            value = "; ".join(map(str, value))
        if value not in (None, ""):
            words.append(f"{name}={value}")
    for name, value in fields.items():
        if isinstance(value, str | int | float) and 0 < len(str(value)) <= 40:
            words.append(f"{name}={value}")
    text = " ".join(words)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _verify(options: argparse.Namespace, directory: str) -> int:
    from agentd.audit.verify import verify
    from agentd.model.audit import Position

    head = Position.parse(options.head) if options.head else None
    verdict = verify(directory, head)
    if options.json:
        from agentd.client.cli import remote

        remote.print_json(verdict)
    else:
        _show(verdict, directory, checked=head is not None)
    return 0 if verdict.ok else _FOUND_WRONG


def _show(verdict: "Verdict", directory: str, *, checked: bool) -> None:
    from agentd.client.cli import table
    from agentd.client.cli.remote import safe

    table.facts(
        [
            ("log", directory),
            ("records", f"{verdict.records} in {_files(verdict.files)}"),
            ("retired", f"records up to {verdict.retired}" if verdict.retired else "none"),
            ("head", verdict.head or "none"),
        ]
    )
    for problem in verdict.problems:
        where = f"{problem.file}:{problem.line}: " if problem.file else ""
        print(safe(f"{where}record {problem.seq}: {problem.kind}: {problem.message}"))
    if verdict.ok:
        end = "its end included" if checked else "a cut-off end shows with --head alone"
        print(_coloured("ok", "green") + f": every record is there and unchanged; {end}")
    else:
        print(_coloured("not ok", "red") + ": this log is not as it was written")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _coloured(text: str, colour: str) -> str:
    if not os.isatty(1) or "NO_COLOR" in os.environ:
        return text
    return f"\x1b[{ {'red': 31, 'green': 32}[colour] }m{text}\x1b[0m"


def _export(options: argparse.Namespace, directory: str) -> int:
    from agentd.audit import read

    lines = read.lines(directory, options.first, options.last)
    if options.out is None:
        _write(lines)
        return 0
    try:
        with open(options.out, "xb", opener=_private) as file:
            file.writelines(lines)
    except OSError as error:
        raise InvalidInput(
            f"cannot write {options.out}",
            cause=error.strerror or "",
            remediation="name a new file in a directory of yours",
        ) from error
    return 0


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write(lines: Iterable[bytes]) -> None:
    for line in lines:
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
