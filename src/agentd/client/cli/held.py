"""What a sandbox's wall holds, told to the caller beside the command's own output."""

import sys
from collections.abc import Mapping

from agentd.client.cli import output, table
from agentd.model.enforcement import Control, unheld, unlimited

HEADINGS = ("CONTROL", "ASKED", "HOLDS", "HOW")


def tell(
    enforcement: Mapping[str, Control], command: str, *, verbose: bool = False, quiet: bool = False
) -> None:
    """Tell it on standard error: all if ``verbose``; else one line, for a person at a terminal,
    where a default limit does not hold. ``quiet`` keeps that line back."""
    if verbose:
        table.show(HEADINGS, rows(enforcement), sys.stderr)
        return
    if quiet or not table.is_terminal(sys.stderr):
        return
    missing = unlimited(unheld(enforcement))
    if missing:
        output.say(f"{missing}; -v or agentd doctor tells why", command, colour=output.YELLOW)


def rows(enforcement: Mapping[str, Control]) -> list[tuple[table.Cell, ...]]:
    return [
        (name, control.asked, _holds(control), control.detail)
        for name, control in enforcement.items()
    ]


def _holds(control: Control) -> table.Marked:
    return table.Marked("yes", "") if control.enforced else table.Marked("no", "yellow")
