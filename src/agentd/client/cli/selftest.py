"""``agentd selftest``: attacks run behind this machine's walls, to see that each control holds."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentd.client.cli import remote, table
from agentd.client.cli.parser import Parser
from agentd.model.spec import DEFAULT_IMAGE
from agentd.model.units import counted

if TYPE_CHECKING:
    from agentd.client.embedded import AttackRow, SelftestReport
    from agentd.selftest.report import BackendReport

_EXAMPLES = """\
examples:
  agentd selftest
  agentd selftest --comprehensive                     slower attacks, every wall that works here
  agentd selftest --backend linux --backend qemu
  agentd selftest --backend linux --image mine        the sandboxes' root is of this image
  agentd selftest --json | jq '.backends[].attacks[].verdict' | sort | uniq -c
  agentd selftest --backend host                      what the attacks do where there is no wall

Nothing is harmed by an attack that gets through: each is bounded, and its targets are laid out for
it. A daemon that runs is not asked; the sandboxes are this process's own.

exit codes:
  0 every wall held; 1 something got through, broke or could not be tried, a wall stopped nothing,
  or one named by --backend is not usable here; 2 wrong options
"""
FAILED = 1
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

    report = embedded.selftest(
        options.backend, thorough=options.comprehensive, image=options.image, told=_progress()
    )
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
        help="this wall; see agentd doctor",
    )
    parser.add_argument(
        "--image",
        metavar="NAME",
        default=DEFAULT_IMAGE,
        help="an OCI image that their sandboxes start of; it must have python3",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _progress() -> "Callable[[str, AttackRow], None]":
    """Write one line on a terminal, over the one before; nothing elsewhere."""
    shown = sys.stderr.isatty()

    def told(backend: str, row: "AttackRow") -> None:
        if shown:
            sys.stderr.write(f"\r\033[K{backend}: {row.name}: {row.verdict}")
            sys.stderr.flush()

    return told


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()


def _show(report: "SelftestReport") -> None:
    for backend in report.backends:
        _show_backend(backend)
    bad = sum(len(backend.bad) for backend in report.backends)
    rows = [row for backend in report.backends for row in backend.attacks]
    stopped = sum(row.verdict == "stopped" for row in rows)
    left_out = sum(row.verdict == "not applicable" for row in rows)
    table.paragraph(
        f"{'passed' if report.passed else 'FAILED'}: {counted(stopped, 'attack')} stopped, "
        f"{left_out} not applicable, {bad} bad",
        "bold green" if report.passed else "bold red",
    )


def _show_backend(backend: "BackendReport") -> None:
    table.paragraph(f"{backend.name}, level {backend.level}", "bold")
    if not backend.usable:
        for blocker in backend.blockers:
            print(f"  not usable: {remote.safe(blocker.what)}")
            for line in blocker.fix.splitlines():  # as it is, to be copied
                print(f"    {remote.safe(line)}")
        return
    rows = [
        (
            " ".join(row.controls) or "-",
            row.name,
            table.Marked(row.verdict.value, _COLOURS[row.verdict.value]),
            row.detail,
        )
        for row in backend.attacks
    ]
    table.show(("CONTROL", "ATTACK", "VERDICT", "DETAIL"), rows)
    if not backend.stops:
        table.paragraph("it stopped no attack: that is no wall", "bold red")
