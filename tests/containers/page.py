"""The tables of docs/containers.md: what works where, and the options that make it so."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/containers.md"


@dataclass(frozen=True)
class Row:
    container: str
    engine: str
    who: str
    works: dict[str, str]

    def __str__(self) -> str:
        return f"{self.container}, {self.engine}, {self.who}"


def rows() -> list[Row]:
    return [
        Row(line.pop("container"), line.pop("engine"), line.pop("who"), line)
        for line in _table("table")
    ]


def options() -> dict[str, list[str]]:
    """Of podman, by the container's name."""
    return {
        line["container"]: " ".join(re.findall(r"`([^`]+)`", line["podman"])).split()
        for line in _table("options")
    }


def _table(name: str) -> Iterator[dict[str, str]]:
    between = re.compile(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", re.S)
    found = between.search(PAGE.read_text())
    assert found, f"{PAGE} has no table {name}"
    head, _, *lines = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in found[1].splitlines()
    )
    for line in lines:
        yield dict(zip(head, line, strict=True))
