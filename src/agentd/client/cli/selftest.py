"""``agentd selftest``: attacks run behind this machine's walls, to see that each control holds."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentd.client.cli import remote
from agentd.client.cli.parser import Parser

if TYPE_CHECKING:
    from rich.console import Console

    from agentd.client.embedded import Report, Row
    from agentd.selftest.report import BackendReport

_EXAMPLES = """\
examples:
  agentd selftest
  agentd selftest --comprehensive                     slower attacks, every wall that works here
  agentd selftest --backend linux --backend qemu
  agentd selftest --json | jq '.backends[].attacks[].verdict' | sort | uniq -c
  agentd selftest --backend host                      what the attacks do where there is no wall

Nothing is harmed by an attack that gets through: each is bounded, and its targets are laid out for
it. A daemon that runs is not asked; the sandboxes are this process's own.

exit codes:
  0 every wall held; 1 something got through, broke or could not be tried, a wall stopped nothing,
  or one named by --backend is not usable here; 2 wrong options
"""
FAILED = 1
_WIDTH = 160
_COLOURS = {
    "stopped": "green",
    "works": "green",
    "not applicable": "dim",
    "got through": "bold red",
    "broken": "bold red",
    "undecided": "bold yellow",
}


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    from agentd.client import embedded

    report = embedded.selftest(options.backend, thorough=options.comprehensive, told=_progress())
    _clear()
    if options.json:
        remote.print_json(report)
    else:
        _show(report)
    return 0 if report.passed else FAILED


def _parser() -> Parser:
    parser = Parser(
        prog="agentd selftest",
        description="Attack the walls of this machine, to see that every control stops what it "
        "must, and that a sandbox still works.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "--comprehensive",
        action="store_true",
        help="slower attacks too, behind every wall that is usable here (default: landlock, linux)",
    )
    parser.add_argument(
        "--backend",
        metavar="NAME",
        action="append",
        default=[],
        help="this wall; may be repeated; see agentd doctor",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _progress() -> "Callable[[str, Row], None]":
    """One line on a terminal, written over; nothing elsewhere."""
    shown = sys.stderr.isatty()

    def told(backend: str, row: "Row") -> None:
        if shown:
            sys.stderr.write(f"\r\033[K{backend}: {row.name}: {row.verdict}")
            sys.stderr.flush()

    return told


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()


def _show(report: "Report") -> None:
    from rich.console import Console

    # A pipe has no width: what reads it breaks lines as it likes.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    for backend in report.backends:
        _show_backend(console, backend)
    bad = sum(len(backend.bad) for backend in report.backends)
    rows = [row for backend in report.backends for row in backend.attacks]
    stopped = sum(row.verdict == "stopped" for row in rows)
    left_out = sum(row.verdict == "not applicable" for row in rows)
    console.print(
        f"{'passed' if report.passed else 'FAILED'}: {stopped} attacks stopped, "
        f"{left_out} not applicable, {bad} bad",
        style="bold green" if report.passed else "bold red",
    )


def _show_backend(console: "Console", backend: "BackendReport") -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(f"{backend.name}, level {backend.level}", style="bold")
    if not backend.usable:
        for blocker in backend.blockers:
            console.print(f"  not usable: {blocker.what}", markup=False)
            console.print(f"    {blocker.fix}", markup=False, soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("CONTROL", "ATTACK", "VERDICT", "DETAIL"):
        table.add_column(heading)
    for row in backend.attacks:
        verdict = Text(row.verdict.value, _COLOURS[row.verdict.value])
        controls = Text(" ".join(row.controls) or "-")
        table.add_row(controls, Text(row.name), verdict, Text(row.detail))
    console.print(table)
    if not backend.stops:
        console.print("it stopped no attack: that is no wall", style="bold red")
