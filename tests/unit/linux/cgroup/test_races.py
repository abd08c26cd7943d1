"""What a version 2 kernel answers when another is quicker, on directories that look like its."""

import errno
import os
from pathlib import Path

import pytest

from agentd.linux.cgroup import files, v2
from agentd.linux.cgroup.hierarchy import GroupLimits


@pytest.fixture
def group(tmp_path: Path) -> v2.V2Group:
    directory = tmp_path / "box"
    directory.mkdir()
    (directory / "cgroup.freeze").write_text("0")
    (directory / "cgroup.procs").write_text("")
    return v2.V2Group("box", [str(directory)], frozenset(), lambda: None)


@pytest.mark.parametrize("number", [errno.ESRCH, errno.EINVAL])
def test_a_member_that_is_reaped_meanwhile_is_passed_over(
    group: v2.V2Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def gone(pid: int) -> int:
        (tmp_path / "box" / "cgroup.procs").write_text("")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", gone)
    (tmp_path / "box" / "cgroup.procs").write_text("41\n")
    assert group.kill()


def test_any_other_failure_to_pin_a_member_is_told(
    group: v2.V2Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(pid: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "pidfd_open", full)
    (tmp_path / "box" / "cgroup.procs").write_text("41\n")
    with pytest.raises(OSError, match="too many"):
        group.kill()


def test_a_group_that_goes_while_it_is_written_is_a_group_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed(fd: int, data: bytes) -> int:
        raise OSError(errno.ENODEV, "no such device")

    (tmp_path / "pids.max").write_text("max")
    monkeypatch.setattr(os, "write", removed)
    with pytest.raises(FileNotFoundError, match=r"pids\.max"):
        files.write(str(tmp_path), "pids.max", 1)


def test_freeze_waits_until_the_kernel_says_so(
    group: v2.V2Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "box" / "cgroup.events"
    events.write_text("populated 1\nfrozen 0\n")
    asked = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        if len(asked) == 3:
            events.write_text("populated 1\nfrozen 1\n")

    monkeypatch.setattr(v2.time, "sleep", sleep)
    group.freeze()
    assert len(asked) == 3


def test_a_group_that_does_not_freeze_is_thawed_again(
    group: v2.V2Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "box" / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    monkeypatch.setattr(v2, "_FREEZE_SECONDS", 0.0)
    with pytest.raises(TimeoutError, match="did not freeze"):
        group.freeze()
    assert (tmp_path / "box" / "cgroup.freeze").read_text() == "0"


def test_controllers_are_shared_again_when_another_has_made_the_parent(
    tmp_path: Path,
) -> None:
    parent = tmp_path / v2.PARENT
    for directory in (tmp_path, parent, parent / "box"):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.controllers").write_text("memory")
        (directory / "cgroup.subtree_control").write_text("")
    (parent / "box" / "memory.max").write_text("max")
    tree = v2.V2Hierarchy(str(tmp_path), ".")
    tree._limit("box", GroupLimits(memory=4096, pids=None, cpus=None))
    assert (parent / "cgroup.subtree_control").read_text() == "+memory"
    assert (parent / "box" / "memory.max").read_text() == "4096"
