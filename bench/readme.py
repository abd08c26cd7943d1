"""Puts the table of bench/out/results.json between the markers in README.md."""

import json
import sys
from pathlib import Path

import report

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def main() -> int:
    source, page = HERE / "out/results.json", HERE.parent / "README.md"
    if not source.exists():
        print(f"{source}: no results yet; run make bench first", file=sys.stderr)
        return 1
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        print(f"{page}: needs the lines {BEGIN} and {END} once each", file=sys.stderr)
        return 1
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    table = report.as_markdown(json.loads(source.read_text()))
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    print(f"{page}: table rewritten from {source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
