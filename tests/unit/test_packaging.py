"""What the package says of itself is what its source needs."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What is imported by another name than it is installed by.
NAMES = {"jwt": "pyjwt", "opentelemetry": "opentelemetry-sdk"}
# What the sandbox's own Python may have: it is asked for there, and never here.
INSIDE = {"ipykernel", "IPython", "jupyter_client", "zmq"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def declared() -> set[str]:
    extras = (each for found in PROJECT["optional-dependencies"].values() for each in found)
    said = (re.split(r"[<>=!~ \[]", text)[0] for text in [*PROJECT["dependencies"], *extras])
    return {name.lower().replace("-", "_") for name in said}


def test_what_is_imported_is_declared() -> None:
    found = {name for path in (ROOT / "src").rglob("*.py") for name in imported(path)}
    found -= set(sys.stdlib_module_names) | {"agentd"} | INSIDE
    wanted = {NAMES.get(name, name).lower().replace("-", "_") for name in found}
    assert wanted <= declared()


def test_extras_that_are_advised_are_there() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    for path in [*(ROOT / "src").rglob("*.py"), *pages]:
        for extra in re.findall(r"agentd\[(\w+)\]", path.read_text()):
            assert extra in PROJECT["optional-dependencies"], path


def test_the_map_of_the_house_has_every_room_of_the_daemon() -> None:
    (line,) = re.findall(
        r"^\| `daemon/` \|.*$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE
    )
    rooms = {path.parent.name for path in (ROOT / "src/agentd/daemon").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"`(\w+)/`", line)) - {"daemon"}
