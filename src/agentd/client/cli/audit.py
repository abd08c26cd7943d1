"""``agentd audit``: the log of what was done, read from its files or from its daemon."""

import argparse
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from agentd.client.cli import kept, output, remote, streams
from agentd.client.cli.parser import Parser, named
from agentd.model.errors import InvalidInput
from agentd.model.system import os_errors_as

if TYPE_CHECKING:
    from agentd.audit.verify import LogVerdict
    from agentd.client.cli.audit_source import Source

_EXAMPLES = """\
examples:
  agentd audit tail
  agentd audit tail -n 100 --json | jq .kind
  agentd audit tail -f
  agentd audit verify
  agentd audit head                                to be kept elsewhere
  agentd audit verify --head 1042:9f2c...          a place that was kept elsewhere
  agentd audit export --from 1000 --out audit.jsonl
  agentd audit verify --dir /var/lib/agentd/audit
  agentd audit accept-loss --dir /var/lib/agentd/audit

It is the log of the daemon that --url or AGENTD_URL names, or that is at the usual socket, else
this machine's: the daemon's, where there is one, or that of calls without a daemon (--embedded).
verify ends with 0 where all is as it was written, with 1 where it is not, or where there is no log.
It looks at the log's files with --dir: then the receipts beside them are compared, too.
A daemon does not go on with a log that lost what was written to it. accept-loss writes down what
is gone, so that it can; keep what is left as evidence first.
"""
_TAIL = """\
  agentd audit tail
  agentd audit tail -n 100 --json | jq .kind
  agentd audit tail -f
"""
_VERIFY = """\
  agentd audit verify
  agentd audit verify --head 1042:9f2c...          a place that was kept elsewhere
  agentd audit verify --dir /var/lib/agentd/audit   receipts beside it, too
"""
_EXPORT = """\
  agentd audit export --from 1000 --out audit.jsonl
  agentd audit export --from 9 --to 12 | jq .kind
"""
_FOUND_WRONG = 1
_NOTHING_LOST = "nothing that was written is missing: the log is as it was"
_FIRST = ("cause", "exit_code", "undecided", "reasons")


def main(words: list[str]) -> int:
    from agentd.audit.errors import NoLog
    from agentd.client.cli import audit_source

    options = _parser().parse_args(words)
    try:
        if options.action == "accept-loss":
            return _accept(options, audit_source.directory(options))
        return int(options.run(options, audit_source.find(options)))
    except NoLog as error:
        output.say(str(error), "audit")
        return _FOUND_WRONG


def _parser() -> Parser:
    parser = Parser(
        prog="agentd audit",
        description="Look at the audit log, verify that nothing was taken from it, export it.",
        epilog=_EXAMPLES,
    )
    actions = parser.actions(_options)
    tail = actions.add("tail", "print the latest records", _TAIL, _tail)
    tail.add_argument("-n", metavar="N", type=_number, default=20, help="how many (default: 20)")
    tail.add_argument("-f", "--follow", action="store_true", help="wait for more")
    actions.add("head", "print the last record's place, SEQ:HASH", "  agentd audit head\n", _head)
    about = "check that every record is there and unchanged"
    verify = actions.add("verify", about, _VERIFY, _verify)
    verify.add_argument(
        "--head",
        type=named,
        metavar="SEQ:HASH",
        help="a record that must be there, from a receipt, say",
    )
    export = actions.add("export", "write records as they are, a line each", _EXPORT, _export)
    export.add_argument(
        "--from",
        dest="first",
        metavar="SEQ",
        type=_number,
        default=1,
        help="the first record's number (default: 1)",
    )
    export.add_argument(
        "--to",
        dest="last",
        metavar="SEQ",
        type=_number,
        help="the last one's (default: the newest)",
    )
    export.add_argument(
        "--out", type=named, metavar="FILE", help="a new file (default: standard output)"
    )
    actions.add(
        "accept-loss",
        "write down what is gone, and let the log go on",
        "  agentd audit accept-loss --dir /var/lib/agentd/audit\n",
    )
    return parser


def _options(parser: Parser) -> None:
    kept.options(parser, "log")
    remote.daemon_options(parser)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 19):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def _tail(options: argparse.Namespace, source: "Source") -> int:
    from agentd.audit.record import decode

    found = source.tail(options.n)
    if options.json:
        _write(found)
    else:
        from agentd.client.cli import table

        headings = ("SEQ", "TIME", "KIND", "PRINCIPAL", "SANDBOX", "REQUEST", "ABOUT")
        table.show(headings, [_row(decode(line)) for line in found])
    if options.follow:
        _follow(options, source, decode((found or source.tail(1))[-1]).seq + 1)
    return 0


def _follow(options: argparse.Namespace, source: "Source", first: int) -> None:
    from agentd.audit.record import decode
    from agentd.client.cli.remote import safe

    for line in source.follow(first):
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


def _head(options: argparse.Namespace, source: "Source") -> int:
    from agentd.audit.record import decode

    last = decode(source.tail(1)[-1]).position
    told = {"seq": last.seq, "hash": last.hash, "head": str(last)}
    return remote.tell(options, told, str(last))


def _verify(options: argparse.Namespace, source: "Source") -> int:
    from agentd.model.audit import Position

    head = Position.parse(options.head) if options.head else None
    verdict = source.verify(head)
    if options.json:
        remote.print_json(verdict)
    else:
        _show(verdict, source.where, checked=head is not None)
    return 0 if verdict.ok else _FOUND_WRONG


def _accept(options: argparse.Namespace, directory: str) -> int:
    from agentd.audit import mending

    events = mending.accept(directory)
    told = [{"kind": event.kind, "fields": event.fields} for event in events]
    lines = []
    for event in events:
        words = ", ".join(f"{name} {value}" for name, value in event.fields.items())
        lines.append(remote.safe(f"written down: {event.kind}: {words}"))
    end = "the log goes on behind that" if events else _NOTHING_LOST
    return remote.tell(options, {"written": told}, "\n".join([*lines, end]))


def _show(verdict: "LogVerdict", where: str, *, checked: bool) -> None:
    from agentd.client.cli import table
    from agentd.client.cli.remote import safe

    of = f" in {_files(verdict.files)}" if verdict.files else ""
    table.facts(
        [
            ("log", where),
            ("records", f"{verdict.records}{of}"),
            ("receipts", _receipts(verdict)),
            ("retired", f"records up to {verdict.retired}" if verdict.retired else "none"),
            ("head", verdict.head or "none"),
        ]
    )
    for note in verdict.notes:
        print(safe(f"record {note.seq}: {note.kind}: {note.message}"))
    for problem in verdict.problems:
        where = f"{problem.file}:{problem.line}: " if problem.file else ""
        print(safe(f"{where}record {problem.seq}: {problem.kind}: {problem.message}"))
    if verdict.ok:
        end = (
            "its end included"
            if checked
            else "an end that was written anew shows with --head alone"
        )
        rest = ", but for what its losses tell" if _has_gaps(verdict) else ""
        print(
            output.coloured("ok", output.GREEN, sys.stdout)
            + f": every record is there and unchanged{rest}; {end}"
        )
    else:
        print(
            output.coloured("not ok", output.RED, sys.stdout)
            + ": this log is not as it was written"
        )


def _receipts(verdict: "LogVerdict") -> str:
    if not verdict.files:
        return "not compared: --dir does that, where the files are"
    return f"{verdict.receipts} beside it"


def _has_gaps(verdict: "LogVerdict") -> bool:
    return any(note.kind == "loss" and "accepted" in note.message for note in verdict.notes)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _check_range(options: argparse.Namespace, source: "Source") -> None:
    """Raises InvalidInput for a range in which no record can be."""
    from agentd.audit.record import decode

    if options.last is not None and options.last < options.first:
        raise InvalidInput(
            f"--from {options.first} is after --to {options.last}", remediation="swap them"
        )
    newest = decode(source.tail(1)[-1]).seq
    if options.first > newest:
        raise InvalidInput(
            f"there is no record {options.first} yet", remediation=f"the newest is {newest}"
        )


def _export(options: argparse.Namespace, source: "Source") -> int:
    _check_range(options, source)
    lines = source.lines(options.first, options.last)
    if options.out == "-":
        streams.check_output()
    if options.out in (None, "-"):
        _write(lines)
        return 0
    fix = "name a new file in a directory of yours"
    with (
        os_errors_as(InvalidInput, f"cannot write {options.out}", fix),
        open(options.out, "xb", opener=_private) as file,
    ):
        count = 0
        for line in lines:
            count += file.write(line) > 0
    return remote.tell(options, {"out": options.out, "records": count})


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write(lines: Iterable[bytes]) -> None:
    for line in lines:
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
