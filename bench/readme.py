"""Puts the tables of bench/out/results.json between the markers in the pages."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import report

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
PAGES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "docs/benchmarks.md": report.as_markdown,
    "README.md": report.as_short,
}


def main(root: Path = HERE.parent) -> int:
    source = root / "bench/out/results.json"
    if not source.exists():
        print(f"{source}: no results yet; run make bench first", file=sys.stderr)
        return 1
    document = json.loads(source.read_text())
    return max([_write(root / name, shown(document)) for name, shown in PAGES.items()])


def _write(page: Path, table: str) -> int:
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        print(f"{page}: needs the lines {BEGIN} and {END} once each", file=sys.stderr)
        return 1
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    print(f"{page}: table rewritten", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
