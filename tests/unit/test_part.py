"""A part of a long target is run until it has passed on the files that are there."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/part"
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "scripts/part")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*GIT, *words], cwd=folder, check=True)
    return folder


def part(checkout: Path, name: str, status: int = 0) -> tuple[int, int]:
    """Its exit status, and how often it has run by then."""
    runs = checkout.parent / "runs"
    script = f"echo {name} >> {runs}; exit {status}"
    done = subprocess.run(
        [f"{checkout}/scripts/part", "target", name, "sh", "-c", script],
        env={"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(checkout.parent / "cache")},
        capture_output=True,
        check=False,
    )
    return done.returncode, runs.read_text().split().count(name)


@pytest.mark.needs("git")
def test_what_has_passed_is_not_run_again_before_a_file_changes(checkout: Path) -> None:
    assert [part(checkout, "one"), part(checkout, "one"), part(checkout, "two")] == [
        (0, 1),
        (0, 1),
        (0, 1),
    ]
    (checkout / "new").write_text("")
    assert part(checkout, "one") == (0, 2)
    (checkout / "new").unlink()
    assert part(checkout, "one") == (0, 2)


@pytest.mark.needs("git")
def test_what_has_failed_is_run_again(checkout: Path) -> None:
    assert [part(checkout, "one", 3), part(checkout, "one", 3)] == [(3, 1), (3, 2)]


@pytest.mark.needs("git")
def test_without_a_repository_nothing_is_remembered(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    assert [part(checkout, "one"), part(checkout, "one")] == [(0, 1), (0, 2)]
