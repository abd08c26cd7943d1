import os
from pathlib import Path

import pytest

from agentd.guest.zygote.scratch import remove


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch" / "a" / "b").mkdir(parents=True)
    (tmp_path / "scratch" / "a" / "b" / "file").write_text("x")
    return tmp_path / "scratch"


def test_a_tree_goes_and_its_neighbours_stay(scratch: Path) -> None:
    (scratch.parent / "beside").mkdir()
    remove(str(scratch))
    assert os.listdir(scratch.parent) == ["beside"]


def test_links_are_not_followed(scratch: Path) -> None:
    outside = scratch.parent / "outside"
    outside.mkdir(mode=0o500)
    (scratch / "link").symlink_to(outside)
    (scratch / "a" / "link").symlink_to("/etc/passwd")
    remove(str(scratch))
    assert outside.stat().st_mode & 0o777 == 0o500
    assert os.listdir(scratch.parent) == ["outside"]


def test_directories_closed_to_their_owner(scratch: Path) -> None:
    (scratch / "a" / "b").chmod(0)
    (scratch / "a").chmod(0o500)
    scratch.chmod(0)
    remove(str(scratch))
    assert not scratch.exists()


def deepen(top: Path, levels: int) -> None:
    here = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(levels):
        os.mkdir("deeper", dir_fd=here)
        below = os.open("deeper", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        if number % 1000 == 999:
            os.fchmod(here, 0o500)
        os.close(here)
        here = below
    os.close(here)


def test_deeper_than_what_is_remembered_of_it(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.guest.removal.MAX_DEPTH", 1200)
    deepen(scratch, 3000)
    remove(str(scratch))
    assert not scratch.exists()


def test_what_is_gone_already(tmp_path: Path) -> None:
    remove(str(tmp_path / "absent"))
    remove(str(tmp_path / "absent" / "absent"))
    assert os.listdir(tmp_path) == []
