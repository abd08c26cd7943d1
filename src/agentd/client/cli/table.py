"""Tables: drawn on a terminal, plain columns elsewhere; and instants and times for people."""

import os
import sys
import time
from collections.abc import Sequence

from agentd.client.cli.remote import safe


def show(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [[safe(cell) for cell in row] for row in rows]
    if os.isatty(1):
        _draw(headings, cells)
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for row in [list(headings), *cells]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """``name  value`` lines."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print(f"{name.ljust(width)}  {safe(value)}")


def ago(instant: float) -> str:
    return f"{span(max(0.0, time.time() - instant))} ago"


def until(instant: float | None) -> str:
    if instant is None:
        return "-"
    left = instant - time.time()
    return f"in {span(left)}" if left > 0 else "now"


def span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def _draw(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout, highlight=False).print(table)
