"""Tables: drawn on a terminal, plain columns elsewhere; and instants and times for people."""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO

from agentd.client.cli.remote import print_json, safe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class Marked(NamedTuple):
    """A cell with a colour, for a terminal."""

    text: str
    style: str


Cell = object  # a Marked, a tuple of lines, or anything with a text


def tell(
    options: argparse.Namespace,
    value: object,
    headings: Sequence[str],
    rows: Sequence[Sequence[Cell]],
) -> int:
    """Print ``value`` where JSON was asked for, or else the table; return 0."""
    print_json(value) if options.json else show(headings, rows)
    return 0


def tell_facts(
    options: argparse.Namespace, value: object, pairs: Sequence[tuple[str, Cell]]
) -> int:
    """Print ``value`` where JSON was asked for, or else the facts; return 0."""
    print_json(value) if options.json else facts(pairs)
    return 0


def show(headings: Sequence[str], rows: Sequence[Sequence[Cell]], to: TextIO | None = None) -> None:
    """Show a table on standard output, or ``to``."""
    file = to or sys.stdout
    cells = [[_cell(cell) for cell in row] for row in rows]
    if is_terminal(file):
        _draw(headings, cells, file)
        return
    texts = [[_one_line(cell) for cell in row] for row in cells]
    widths = [max(map(_columns, column)) for column in zip(headings, *texts, strict=True)]
    for row in [list(headings), *texts]:
        line = "  ".join(_padded(text, width) for text, width in zip(row, widths, strict=True))
        print(line.rstrip(), file=file)


def paragraph(text: str, style: str = "") -> None:
    """Print it: wrapped and coloured on a terminal, as one line elsewhere."""
    lines = text.split("\n")
    if not is_terminal(sys.stdout):
        print("\n".join(map(safe, lines)))
        return
    from rich.text import Text

    console().print(Text("\n".join(map(safe, lines)), style))


def indented(line: Sequence[Marked], by: int) -> None:
    """Print one line of some colours; on a terminal what does not fit is indented, too."""
    if not is_terminal(sys.stdout):
        print(" " * by + "".join(part.text for part in line))
        return
    from rich.padding import Padding
    from rich.text import Text

    console().print(Padding(Text.assemble(*line), (0, 0, 0, by)))


def facts(pairs: Sequence[tuple[str, Cell]]) -> None:
    """Print ``name  value`` lines."""
    cells = [[_cell(name), _cell(value)] for name, value in pairs]
    if is_terminal(sys.stdout):
        _draw(("", ""), cells, sys.stdout, headed=False)
        return
    width = max((_columns(name.text) for name, _ in cells), default=0)
    for name, value in cells:
        print(f"{_padded(name.text, width)}  {_one_line(value)}")


def is_terminal(file: TextIO | None) -> bool:
    """Return whether it is one: Python has no file where that was closed before it started."""
    return file is not None and file.isatty()


def ago(instant: float) -> str:
    return f"{span(max(0.0, time.time() - instant))} ago"


def until(instant: float | None) -> str:
    if instant is None:
        return "-"
    left = instant - time.time()
    return f"in {_about(left)}" if left > 0 else "now"


def _about(seconds: float) -> str:
    """Round to the nearest unit, so that what was given as 10m is 10m a moment later."""
    for size, unit, larger, most in ((1, "s", "m", 60), (60, "m", "h", 60), (3600, "h", "d", 24)):
        count = round(seconds / size)
        if count < 2 * most:
            return f"1{larger}" if count == most else f"{count}{unit}"
    return f"{round(seconds / 86400)}d"


def span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def _cell(cell: Cell) -> Marked:
    if isinstance(cell, Marked):
        return cell._replace(text=safe(cell.text))
    lines = cell if isinstance(cell, tuple) else (cell,)
    return Marked("\n".join(map(safe, lines)), "")


def _one_line(cell: Marked) -> str:
    return "; ".join(line.strip() for line in cell.text.splitlines())


def _columns(text: str) -> int:
    """Return how many columns it takes, as on a terminal: of some characters two, or none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # late: it takes long to import

    return cell_len(text)


def _padded(text: str, columns: int) -> str:
    return text + " " * (columns - _columns(text))


def _draw(
    headings: Sequence[str], rows: Sequence[Sequence[Marked]], file: TextIO, *, headed: bool = True
) -> None:
    made, table = console(file), _grid(headings, rows, headed=headed)
    if headed and rows:
        narrow = _grid(("", ""), _records(headings, rows), headed=False)
        if len(made.render_lines(narrow)) < len(made.render_lines(table)):
            table = narrow
    made.print(table)


def _records(
    headings: Sequence[str], rows: Sequence[Sequence[Marked]]
) -> list[tuple[Marked, Marked]]:
    """Return each row as lines of its own, a cell each: a narrow terminal breaks words of fewer."""
    blank = Marked("", "")
    lines = []
    for row in rows:
        named = zip(headings, row, strict=True)
        lines += [(Marked(name, "bold"), cell) for name, cell in named if cell.text]
        lines.append((blank, blank))
    return lines[:-1]


def _grid(headings: Sequence[str], rows: Sequence[Sequence[Marked]], *, headed: bool) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=headed)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == "ID")  # it is copied
    for row in rows:
        table.add_row(*(Text(cell.text, cell.style) for cell in row))
    return table


def console(file: TextIO | None = None) -> "Console":
    """Return a console on standard output, or ``file``; takes long to import. A reader that went
    away is a BrokenPipeError: rich itself would end the process with 1."""
    from rich.console import Console, ConsoleDimensions

    class Raising(Console):
        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704  (it is called in the handler)

    made = Raising(file=file, highlight=False)
    if made.is_dumb_terminal:  # rich takes each of those for one of 80 columns
        made.size = ConsoleDimensions(*shutil.get_terminal_size())
    return made
