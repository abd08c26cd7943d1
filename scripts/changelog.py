"""Builds *Unreleased* in CHANGELOG.md of the fragments in changelog.d, by towncrier.

A line that was written there by hand becomes a fragment first, under the heading it stands below.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

TITLE = "## Unreleased"
_WORDS = 6  # of an entry, in its fragment's name


class Entry(NamedTuple):
    """A change: the type of its fragment, and its text without the indent of a list."""

    kind: str
    text: str


def types(checkout: Path) -> dict[str, str]:
    """Return the heading of each type of fragment."""
    settings = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    return {one["directory"]: one["name"] for one in settings["tool"]["towncrier"]["type"]}


def parted(changelog: str) -> tuple[str, str, str]:
    """Return what comes before the text of Unreleased, that text, and what comes after it."""
    before, title, rest = changelog.partition(f"{TITLE}\n")
    if not title:
        raise ValueError(f"CHANGELOG.md has no {TITLE!r}")
    end = re.search(r"^## ", rest, re.MULTILINE)
    at = end.start() if end else len(rest)
    return before + title, rest[:at], rest[at:]


def entries(unreleased: str, headings: dict[str, str]) -> list[Entry]:
    """Raises ValueError for a heading that no type of fragment has, and for text in no entry."""
    kinds = {heading: kind for kind, heading in headings.items()}
    found: list[Entry] = []
    kind = ""
    for line in unreleased.splitlines():
        if line.startswith("### "):
            kind = kinds.get(line[4:], "")
            if not kind:
                raise ValueError(f"no type of fragment has the heading {line[4:]!r}")
        elif line.startswith("- ") and kind:
            found.append(Entry(kind, line[2:]))
        elif line.startswith("  ") and found:
            found[-1] = found[-1]._replace(text=f"{found[-1].text}\n{line[2:]}")
        elif line:
            raise ValueError(f"the line {line!r} is no entry below a heading")
    return found


def fragments(folder: Path, headings: dict[str, str]) -> set[Entry]:
    return {
        Entry(kind, path.read_text(encoding="utf-8").strip())
        for kind in headings
        for path in folder.glob(f"*.{kind}.md")
    }


def add(folder: Path, entry: Entry) -> Path:
    """Write the fragment, under a name that is free."""
    words = re.findall(r"[a-z0-9]+", entry.text.lower())[:_WORDS]
    name = "-".join(words)
    number = 1
    while (path := folder / f"{name}.{entry.kind}.md").exists():
        number += 1
        name = "-".join([*words, str(number)])
    path.write_text(f"{entry.text}\n", encoding="utf-8")
    return path


def build(checkout: Path) -> str:
    """Return the text of Unreleased as towncrier has it of the fragments."""
    argv = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "Unreleased"]
    done = subprocess.run(argv, cwd=checkout, capture_output=True, text=True, check=True)
    return parted(done.stdout)[1].strip("\n")


def main(checkout: Path) -> None:
    path, folder = checkout / "CHANGELOG.md", checkout / "changelog.d"
    headings = types(checkout)
    before, unreleased, after = parted(path.read_text(encoding="utf-8"))
    known = fragments(folder, headings)
    for entry in entries(unreleased, headings):
        if entry not in known:
            print(add(folder, entry).name)
    path.write_text(f"{before}\n{build(checkout)}\n{after and chr(10)}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(__file__).resolve().parent.parent)
