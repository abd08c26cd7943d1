"""Run programs outside and inside, and say which work where: ``make compat``.

``--write FILE`` puts the table into a page, between its two marks. Installs nothing.
"""

import argparse
import platform
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.compat.page import put
from tests.compat.rows import Outcome, Row, inside, missing, outside, rows

_RAN = ("works", "fails", "by design")
BEGIN, END = "<!-- compat: begin -->", "<!-- compat: end -->"


def main() -> int:
    options = _parsed()
    chosen = [row for row in rows() if options.only in f"{row.kind}: {row.name}"]
    if not chosen:
        print(f"no row has {options.only!r} in its name: see tests/compat/programs.toml")
        return 2
    wanted: dict[str, object] = {"isolation": options.isolation, "memory": "2G"}
    if options.root:
        wanted |= {"user": "root", "writable": True}
    results = [(row, *_run(row, wanted)) for row in chosen]
    table = "\n".join(_table(results))
    print(table)
    if options.write:
        put(Path(options.write), BEGIN, END, table)
    return 1 if any(state == "fails" for _, state, _ in results) else 0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make compat", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="rows of whose name it is a part"
    )
    parser.add_argument("--isolation", default="namespace")
    parser.add_argument("--root", action="store_true", help="with --user root --writable")
    parser.add_argument("--write", metavar="FILE", help="put the table into a page")
    return parser.parse_args()


def _run(row: Row, wanted: dict[str, object]) -> tuple[str, str]:
    """(state, why): "works", "fails", "by design", "inside only", "nowhere" or "absent"."""
    lacking = missing(row)
    if lacking:
        return "absent", f"{lacking} is not installed"
    before: Outcome = outside(row, as_root="user" in wanted)
    found: Outcome = inside(row, **wanted)
    if found.passed:
        state, why = ("works", "") if before.passed else ("inside only", before.said)
    elif not before.passed:
        state, why = "nowhere", before.said
    else:
        state, why = ("by design", row.reason) if row.reason else ("fails", found.said)
    print(f"{state:10} {row.kind}: {row.name} {why}", file=sys.stderr, flush=True)
    return state, why


def _table(results: Iterable[tuple[Row, str, str]]) -> Iterable[str]:
    results = list(results)
    kernel = platform.release().partition("-")[0]
    yield f"Measured on {platform.system()} {kernel}, {_distribution()}."
    yield ""
    yield "| kind | work outside | of them inside | fail inside |"
    yield "|---|-:|-:|---|"
    for kind in dict.fromkeys(row.kind for row, _, _ in results):
        states = [(row, state, why) for row, state, why in results if row.kind == kind]
        ran = [found for found in states if found[1] in _RAN]
        works = sum(state == "works" for _, state, _ in ran)
        failed = [f"{row.name}: {_cell(why)}" for row, state, why in ran if state != "works"]
        yield f"| {kind} | {len(ran)} of {len(states)} | {works} | {'; '.join(failed)} |"
    counted = Counter(state for _, state, _ in results)
    ran_all = sum(counted[state] for state in _RAN)
    yield f"| **all** | {ran_all} of {len(results)} | **{counted['works']}** | |"
    yield ""
    absent = [row.name for row, state, _ in results if state == "absent"]
    nowhere = [row.name for row, state, _ in results if state == "nowhere"]
    yield f"Not run, since something that they need is not installed here: {', '.join(absent)}."
    inside_only = [row.name for row, state, _ in results if state == "inside only"]
    for names, what in (
        (inside_only, "Work inside and not outside, as this host is set up"),
        (nowhere, "Work neither outside nor inside, as this host is set up"),
    ):
        if names:
            yield ""
            yield f"{what}: {', '.join(names)}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _distribution() -> str:
    return platform.freedesktop_os_release().get("PRETTY_NAME", "an unknown distribution")


if __name__ == "__main__":
    sys.exit(main())
