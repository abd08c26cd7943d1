"""Checks what the package's tree promises a reader; prints each breach, and ends with 1 on any.

- A public class name means one thing. EXCEPTIONS has those that stand in several files, each with
  the reason. A name that begins with an underscore is its file's own, and is not looked at.
- No file has more than MAX_LINES lines.
- No module imports itself by way of others, late imports included; imports for type checkers alone
  do not count.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

MAX_LINES = 400
_CONTRACT = "the service's contract, and what implements it"
_SUITE = "of the suite for doors, which third parties run and no code of agentd's meets"
EXCEPTIONS: Mapping[str, str] = {
    **dict.fromkeys(("Approvals", "Commands", "Files", "Gatekeeper", "Repeats"), _CONTRACT),
    **dict.fromkeys(("Sandboxes", "Service", "Snapshot", "Snapshots"), _CONTRACT),
    **dict.fromkeys(("Answer", "Daemon", "Ended", "Operation", "Place"), _SUITE),
    "Channel": "the host's and the guest's end of one; the guest's room is shipped by itself",
    "Mount": "documented for doors (where one answers) and for sandboxes (a folder of the host's)",
    "NotFound": "goes over the supervisor's socket by this name, and is the other one there",
}
#: Files that are longer, each with the reason.
LONG: Mapping[str, str] = {}


def repeated(names: Mapping[str, Iterable[str]], exceptions: Mapping[str, str]) -> Iterator[str]:
    """``names`` maps each class name to the files that define it."""
    for name, files in sorted(names.items()):
        places = sorted(files)
        if len(places) > 1 and name not in exceptions:
            where = ", ".join(places)
            yield f"class {name} has {len(places)} meanings, rename all but one: {where}"
    for name in sorted(exceptions):
        if len(list(names.get(name, ()))) < 2:
            yield f"class {name} has one meaning: take it out of EXCEPTIONS in scripts/tree.py"


def class_names(package: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(f"{path.relative_to(package)}:{node.lineno}")
    return found


def long_files(package: Path) -> Iterator[str]:
    for path in sources(package):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        name = str(path.relative_to(package))
        if lines > MAX_LINES and name not in LONG:
            yield f"{name} has {lines} lines, over {MAX_LINES}: divide it"
        elif lines <= MAX_LINES and name in LONG:
            yield f"{name} has {lines} lines: take it out of LONG in scripts/tree.py"


def sources(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def import_graph() -> dict[str, set[str]]:
    import grimp  # of import-linter

    graph = grimp.build_graph("agentd", exclude_type_checking_imports=True)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def circles(graph: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """The first circle; there may be more behind it."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        chain = " -> ".join(reversed(error.args[1]))
        yield f"these import each other in a circle: {chain}"


def main(checkout: Path) -> int:
    package = checkout / "src" / "agentd"
    breaches = [
        *repeated(class_names(package), EXCEPTIONS),
        *long_files(package),
        *circles(import_graph()),
    ]
    for breach in breaches:
        print(breach)
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent.parent))
