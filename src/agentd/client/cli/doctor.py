"""``agentd doctor``: which walls work here, what blocks the others, and what mends that."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from agentd.client.cli.options import Parser

if TYPE_CHECKING:
    from rich.console import Console

    from agentd.daemon.doctor import Finding
    from agentd.model.availability import Blocker

_EXAMPLES = """\
examples:
  agentd doctor
  agentd doctor --json | jq '.backends[] | select(.usable) | .name'
"""


def main(words: list[str]) -> int:
    parser = Parser(
        prog="agentd doctor",
        description="Say which walls work on this machine, and exactly what mends the others.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(words)
    from agentd.client import embedded

    findings, machine = embedded.doctor()
    installation = embedded.installation()
    if options.json:
        import msgspec

        found = as_dict(findings, machine) | {"installation": installation}
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        sys.stdout.flush()
    else:
        _show(findings, machine)
        _show_clashes(installation.clashes)
    return 0


def as_dict(findings: "list[Finding]", machine: dict[str, object]) -> dict[str, Any]:
    backends = [
        {
            "name": finding.name,
            "level": finding.level,
            "usable": finding.availability.usable,
            "blockers": finding.availability.blockers,
            "notes": finding.availability.notes,
            "requirements": finding.requirements,
        }
        for finding in findings
    ]
    return {"backends": backends, "machine": machine}


def _show(findings: "list[Finding]", machine: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table("backend", "isolation", "usable", "why not, or notes", title_justify="left")
    for finding in findings:
        found = finding.availability
        remarks = [blocker.what for blocker in found.blockers] or list(found.notes)
        usable = Text("yes", "green") if found.usable else Text("no", "red")
        table.add_row(finding.name, finding.level, usable, Text("\n".join(remarks)))
    console.print(table)
    _show_fixes(console, findings)
    facts = Table("this machine", "", show_header=False)
    for name, value in machine.items():
        facts.add_row(name.replace("_", " "), _words(value))
    console.print(facts)


def _show_clashes(clashes: "tuple[Blocker, ...]") -> None:
    for blocker in clashes:
        print(f"installation: {blocker.what}")
        for line in blocker.fix.splitlines():
            print(f"    {line}")


def _show_fixes(console: "Console", findings: "list[Finding]") -> None:
    # Not in the table: a fix is to be copied whole, and a table breaks its lines.
    for finding in findings:
        for blocker in finding.availability.blockers:
            console.print(f"{finding.name}: {blocker.what}", markup=False)
            for line in blocker.fix.splitlines():
                console.print(f"    {line}", markup=False, soft_wrap=True)


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else str(value)
