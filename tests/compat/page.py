"""A table in a page of the documentation, between its two marks."""

from pathlib import Path


def put(page: Path, begin: str, end: str, table: str) -> None:
    before, _, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}")
