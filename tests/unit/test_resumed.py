"""What passed of a part that was interrupted: the machine tells it, its host writes it down."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.machine import resumed

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest
@pytest.mark.parametrize("name", ["a", "b c"])
def test_passes(name): pass
def test_fails(): assert False
def test_is_skipped(): pytest.skip("here")
@pytest.fixture
def leaves():
    yield
    assert False
def test_fails_after_it(leaves): pass
"""
OURS = ["-ptests.machine.resumed", "-pno:cacheprovider"]


def run(folder: Path) -> bytes:
    argv = [sys.executable, "-m", "pytest", "-v", *OURS, "--rootdir=.", "test_some.py"]
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=folder, env=env, stdout=subprocess.PIPE, check=False)
    return done.stdout


def test_a_test_that_passed_is_left_out_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(resumed.FOLDER, str(tmp_path / "passed"))
    (tmp_path / "test_some.py").write_text(TESTS)
    first = run(tmp_path)
    with resumed.written_down() as note:
        for start in range(0, len(first), 7):  # however it comes
            note(first[start : start + 7])
    listed = (tmp_path / "passed/tests").read_text().splitlines()
    assert listed == ["test_some.py::test_passes[a]", "test_some.py::test_passes[b c]"]
    second = run(tmp_path)
    assert b"2 tests are left out" in second
    assert b"test_passes" not in second
    assert b"test_fails_after_it" in second


def test_nothing_is_remembered_where_no_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(resumed.FOLDER, raising=False)
    (tmp_path / "test_some.py").write_text(TESTS)
    with resumed.written_down() as note:
        note(run(tmp_path))
    assert not list(tmp_path.rglob("tests"))
