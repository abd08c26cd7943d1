"""Puts the tables of bench/out/ between the markers in the pages.

A case that was measured by itself (``--only``) has markers of its own in the long page; they stand
empty once a whole run has it.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import report

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
#: Of one case: its first line, with the case's key, what is between, and its last line.
ONE = re.compile(r"(<!-- bench (\w+): begin -->\n)(?:.*\n)*?(<!-- bench \2: end -->)")
LONG = "docs/benchmarks.md"
PAGES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    LONG: report.as_markdown,
    "README.md": report.as_short,
}


def main(root: Path = HERE.parent, only: str | None = None) -> int:
    name = f"results-{only}.json" if only else "results.json"
    source = root / "bench/out" / name
    if not source.exists():
        print(f"{source}: no results yet; run make bench first", file=sys.stderr)
        return 1
    document = json.loads(source.read_text())
    if only:
        return _write_one(root / LONG, only, report.as_markdown(document))
    return max([_write(root / name, shown(document)) for name, shown in PAGES.items()])


def _write(page: Path, table: str) -> int:
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        print(f"{page}: needs the lines {BEGIN} and {END} once each", file=sys.stderr)
        return 1
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    text = f"{before}{BEGIN}\n{table}\n{END}{after}"
    page.write_text(ONE.sub(r"\1\3", text), encoding="utf-8")
    print(f"{page}: table rewritten", file=sys.stderr)
    return 0


def _write_one(page: Path, only: str, table: str) -> int:
    """Nothing is to be done where the page has no place for it."""
    text = page.read_text(encoding="utf-8")
    for found in ONE.finditer(text):
        if found[2] == only:
            text = f"{text[: found.end(1)]}{table}\n{text[found.start(3) :]}"
            page.write_text(text, encoding="utf-8")
            print(f"{page}: table of {only} rewritten", file=sys.stderr)
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
