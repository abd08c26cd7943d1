"""The suite for authors of walls, as they run it: over a toy that is true, and over liars."""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest

import agentd.testing.walls

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/agentd-wall-toy"
LIARS = Path(__file__).with_name("lying_walls.py")
SUITE = "agentd.testing.walls"
#: Cases that every liar is asked as well: each is of another lie.
WITNESSES = (
    "test_an_exit_code_comes_back[0]",
    "test_streams_are_kept_apart_byte_by_byte",
    "test_seccomp_filters_each_command",
    "test_no_network_means_none",
    "test_a_snapshot_keeps_files",
    "test_what_a_wall_cannot_it_refuses[resume]",
)
Run = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.timeout(1800)  # a minute or more where nothing else is at work


def lies() -> dict[str, set[str]]:
    """Read, not imported: the toy is not installed here."""
    for node in ast.parse(LIARS.read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "LIES":
            source = ast.unparse(node.value) if node.value else ""
            found: dict[str, set[str]] = eval(source)  # noqa: S307  our own table
            return found
    raise AssertionError("no table of lies")


def modules() -> dict[str, str]:
    """The module of each case of the suite."""
    found = {}
    for path in Path(agentd.testing.walls.__path__[0]).glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[node.name] = f"{SUITE}.{path.stem}"
    return found


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Pytest in another process, where the toy and the liars are installed."""
    shutil.copy(LIARS, tmp_path)
    toy = "toy = agentd_wall_toy:ToyBackend\n"
    liars = "".join(f"{name} = lying_walls:{name}\n" for name in lies() if name != "toy")
    for name, points in (("agentd_wall_toy", toy), ("lying_walls", liars)):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[agentd.backends]\n{points}")
    paths = [str(tmp_path), str(EXAMPLE), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")}

    # Short, for sockets, and open to the users of sandboxes, as pytest's own is not.
    with tempfile.TemporaryDirectory(prefix="agentd-suite-") as files:
        os.chmod(files, 0o1777)  # noqa: S103  as /tmp
        env = {**kept, "PYTHONPATH": ":".join(paths), "TMPDIR": files}
        yield partial(_pytest, tmp_path, env)


def _pytest(folder: Path, env: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env=env,
        timeout=1700,
        check=False,
    )


def test_each_lie_fails_the_cases_that_name_it_and_no_other(run: Run, tmp_path: Path) -> None:
    where, expected = modules(), lies()
    chosen = [
        f"{where[name]}::{name}[{backend}{'-' if parameter else ''}{parameter}"
        + ("" if parameter else "]")
        for backend, cases in expected.items()
        for name, _, parameter in (case.partition("[") for case in {*cases, *WITNESSES})
    ]
    backends = [word for backend in expected for word in ("--backend", backend)]
    done = run("--pyargs", *sorted(chosen), *backends, f"--junitxml={tmp_path}/found.xml")
    failed: dict[str, set[str]] = {backend: set() for backend in expected}
    ran = 0
    for case in ElementTree.parse(tmp_path / "found.xml").iter("testcase"):  # noqa: S314  ours
        name, _, rest = case.attrib["name"].partition("[")
        backend, _, parameter = rest.removesuffix("]").partition("-")
        ran += 1
        assert case.find("error") is None, done.stdout
        if case.find("failure") is not None:
            failed[backend].add(f"{name}[{parameter}]" if parameter else name)
    assert ran == len(chosen), done.stdout + done.stderr
    assert failed == expected
    # What a wall does not claim is skipped by its name, and says why.
    assert "toy does not report seccomp as enforced: it is not in the report" in done.stdout
    assert "toy does not report network as enforced: it is not in the report" in done.stdout
    assert "toy has no snapshot: see the case of its refusal" in done.stdout


@pytest.mark.parametrize("copies", ["fork", "snapshot"])
def test_a_lie_of_copies_alone_is_found_by_copies(run: Run, copies: str) -> None:
    case = "test_seccomp_filters_each_command"
    words = ("--pyargs", f"{SUITE}.test_enforcement", "-k", case, "--backend=claims_of_copies")
    assert "1 skipped" in run(*words).stdout
    found = run(*words, "--copies", copies).stdout
    assert "1 failed" in found, found


def test_of_a_wall_without_copies_none_are_asked(run: Run) -> None:
    done = run("--pyargs", SUITE, "--backend=toy", "--copies=fork")
    assert done.returncode == 4
    assert "there are no copies to test: toy has no fork" in done.stdout


@pytest.mark.parametrize("copies", ["fork", "snapshot"])
def test_what_namespaces_hold_their_copies_hold(run: Run, copies: str) -> None:
    words = ("--pyargs", *(f"{SUITE}.{name}" for name in ("test_enforcement", "test_network")))
    done = run(*words, "--backend=linux", "--copies", copies)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_a_wall_that_is_not_there_ends_the_run(run: Run) -> None:
    done = run("--pyargs", SUITE, "--backend=nobody")
    assert done.returncode == 4
    assert "there is no wall to test: unknown backend 'nobody'" in done.stdout


def test_the_options_are_of_the_runs_that_name_a_suite(run: Run) -> None:
    assert "the wall suite of agentd" in run("--help", "--pyargs", "agentd.testing").stdout
    assert "of agentd" not in run("--help").stdout
