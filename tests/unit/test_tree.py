"""``scripts/tree``: it holds for this tree, and tells each breach."""

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tree() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tree", ROOT / "scripts" / "tree.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in {
        "a/one.py": "class Pool: ...\nclass _Own: ...\n",
        "b/two.py": "def make():\n    class Pool: ...\n\nclass _Own: ...\nclass Ring: ...\n",
        "b/long.py": "# a line\n" * 401,
        "b/not_long.py": "# a line\n" * 400,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_this_tree_keeps_its_promises() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "tree"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_a_public_class_name_with_two_meanings_is_told_with_its_places(
    tree: ModuleType, package: Path
) -> None:
    (told,) = tree.repeated(tree.class_names(package), {})
    assert told == "class Pool has 2 meanings, rename all but one: a/one.py:1, b/two.py:2"


def test_an_exception_lets_a_name_be_and_is_told_once_nothing_needs_it(
    tree: ModuleType, package: Path
) -> None:
    names = tree.class_names(package)
    assert list(tree.repeated(names, {"Pool": "for a reason"})) == []
    (told,) = tree.repeated(names, {"Pool": "for a reason", "Ring": "of before"})
    assert "Ring has one meaning: take it out" in told


def test_each_exception_has_its_reason(tree: ModuleType) -> None:
    assert all(reason for reason in (*tree.EXCEPTIONS.values(), *tree.LONG.values()))


def test_a_long_file_is_told(tree: ModuleType, package: Path, monkeypatch) -> None:
    monkeypatch.setattr(tree, "LONG", {})
    assert list(tree.long_files(package)) == ["b/long.py has 401 lines, over 400: divide it"]
    monkeypatch.setattr(tree, "LONG", {"b/long.py": "a reason", "b/not_long.py": "of before"})
    assert list(tree.long_files(package)) == [
        "b/not_long.py has 400 lines: take it out of LONG in scripts/tree.py"
    ]


def test_a_circle_of_imports_is_told_as_a_chain(tree: ModuleType) -> None:
    (told,) = tree.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    chain = told.removeprefix("these import each other in a circle: ").split(" -> ")
    assert chain[0] == chain[-1] and set(chain) == {"a", "b", "c"}
    assert list(tree.circles({"a": {"b"}, "b": set()})) == []


def test_late_imports_count_and_those_of_type_checkers_do_not(tree: ModuleType) -> None:
    graph = tree.import_graph()
    assert "agentd.client.copy" in graph["agentd.client.files"]  # within a method
    assert "agentd.client.files" not in graph["agentd.client.copy"]  # for types alone
