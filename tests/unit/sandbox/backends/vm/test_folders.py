"""Run folders go with their owners, and never before."""

import os
from pathlib import Path

import pytest

from agentd.sandbox.backends.vm import folders


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = str(tmp_path / "run")
    monkeypatch.setattr(folders, "_base_path", lambda: path)
    return path


def test_a_claimed_folder_is_the_owners_alone(base: str) -> None:
    path, lock = folders.claim()
    try:
        assert os.path.dirname(path) == base
        assert os.stat(path).st_mode & 0o777 == 0o700
    finally:
        os.close(lock)


def test_a_living_ones_folder_stays_and_a_dead_ones_goes(base: str) -> None:
    living, lock = folders.claim()
    dead, gone = folders.claim()
    Path(dead, "1.vsock").write_bytes(b"")
    os.close(gone)
    folders.reap(base)
    assert os.listdir(base) == [os.path.basename(living)]
    assert os.path.exists(f"{living}/lock")
    os.close(lock)


def test_whoever_holds_a_copy_of_the_lock_lives(base: str) -> None:
    path, lock = folders.claim()
    copy = os.dup(lock)
    os.close(lock)
    folders.reap(base)
    assert os.path.exists(path)
    os.close(copy)
    folders.reap(base)
    assert not os.path.exists(path)


def test_claiming_removes_the_dead(base: str) -> None:
    dead, gone = folders.claim()
    os.close(gone)
    _, lock = folders.claim()
    os.close(lock)
    assert not os.path.exists(dead)


def test_one_that_is_being_made_is_not_taken_for_dead(base: str) -> None:
    young = os.path.join(folders.base(), "vm-young")
    old = os.path.join(base, "vm-old")
    for path in (young, old):
        os.mkdir(path)
    os.utime(old, (1, 1))
    folders.reap(base)
    assert os.listdir(base) == ["vm-young"]


def test_what_is_not_ours_stays(base: str) -> None:
    other = os.path.join(folders.base(), "other")
    os.mkdir(other)
    os.utime(other, (1, 1))
    folders.reap(base)
    assert os.path.exists(other)


def test_a_link_in_place_of_the_base_is_refused(base: str, tmp_path: Path) -> None:
    os.symlink(tmp_path, base)
    with pytest.raises(folders.FolderError):
        folders.claim()


def test_a_base_that_others_can_write_is_refused(base: str) -> None:
    os.mkdir(base)
    os.chmod(base, 0o777)  # noqa: S103
    with pytest.raises(folders.FolderError, match="chmod"):
        folders.base()


def test_a_long_runtime_directory_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp/" + "x" * 80)
    assert folders._base_path() == "/tmp/agentd-1234"
