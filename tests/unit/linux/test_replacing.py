"""Who reads a file that is replaced finds what it was, or all of what it becomes: after a crash of
the machine, too, where it is to be on disk first."""

import os
from pathlib import Path

import pytest

from agentd.linux.replacing import replacing


@pytest.fixture
def deeds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """What is done to files, in order, each told by its inode or by its new name."""
    done: list[tuple[str, object]] = []
    sync, replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        sync(fd)
        found = os.fstat(fd)
        done.append(("synced", (found.st_ino, found.st_size)))

    def moved(source: str, target: str, **folders: int) -> None:
        done.append(("replaced", os.stat(source, dir_fd=folders["src_dir_fd"]).st_ino))
        replace(source, target, **folders)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", moved)
    return done


@pytest.mark.parametrize("alone", [False, True])
def test_it_is_on_disk_whole_before_it_takes_the_place(
    tmp_path: Path, deeds: list[tuple[str, object]], alone: bool
) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"what it was")
    with replacing(str(path), 0o600, alone=alone, synced=True) as file:
        file.write(b"what it becomes")
        assert path.read_bytes() == b"what it was"
    found = path.stat()
    assert deeds == [("synced", (found.st_ino, 15)), ("replaced", found.st_ino)]
    assert path.read_bytes() == b"what it becomes"


@pytest.mark.parametrize("alone", [False, True])
def test_what_cannot_be_put_on_disk_takes_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"what it was")

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with (
        pytest.raises(OSError, match="Input/output error"),
        replacing(str(path), 0o600, alone=alone, synced=True) as file,
    ):
        file.write(b"what it becomes")
    assert path.read_bytes() == b"what it was"
    assert os.listdir(tmp_path) == ["kept"]
