"""An upper directory made by hand, as a kernel and as an attacker would make it."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.model.errors import Conflict
from agentd.sandbox.backends.linux.cow import OverlayWall
from agentd.sandbox.backends.linux.disk import SandboxDisk
from agentd.sandbox.backends.linux.shared_layer import Taken


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    (tmp_path / "scratch" / "u").mkdir(parents=True)
    return tmp_path / "scratch" / "u"


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    """file, dir/a, dir/b, link -> file."""
    lower = tmp_path / "lower"
    (lower / "dir").mkdir(parents=True)
    (lower / "file").write_text("old")
    (lower / "dir" / "a").write_text("a")
    (lower / "dir" / "b").write_text("b")
    (lower / "link").symlink_to("file")
    return lower


@pytest.fixture
def wall(upper: Path, lower: Path) -> Iterator[OverlayWall]:
    """Only its layers: there is no process behind it."""
    fd = os.open(upper.parent, os.O_RDONLY | os.O_DIRECTORY)
    with socket.socket() as unused:
        wall = OverlayWall(pid=0, pidfd=-1, listener=unused, group=None, enforcement={})
        below = os.open(lower, os.O_RDONLY | os.O_DIRECTORY)
        wall.attach_disk(SandboxDisk(fd, Taken(0, 0)))
        wall.attach_source(below)
        yield wall
    os.close(fd)
    os.close(below)


def _whiteout(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
    except PermissionError:
        pytest.skip("mknod: whiteouts take root or Linux 5.8")


def _opaque(path: Path) -> None:
    try:
        os.setxattr(path, "user.overlay.opaque", b"y")
    except OSError:
        pytest.skip(f"xattr: the file system of {path} has no user attributes")


def test_nothing_changed(wall: OverlayWall) -> None:
    assert wall.changes() == ()


def test_changes_are_sorted_by_path(wall: OverlayWall, upper: Path) -> None:
    (upper / "zero").write_text("")
    (upper / "file").write_text("new")
    (upper / "dir").mkdir()
    _whiteout(upper / "dir" / "a")
    (upper / "fresh" / "deep").mkdir(parents=True)
    (upper / "fresh" / "deep" / "x").symlink_to("/etc/passwd")
    assert wall.changes() == (
        "D dir/a",
        "M file",
        "A fresh/",
        "A fresh/deep/",
        "A fresh/deep/x",
        "A zero",
    )


def test_applying(wall: OverlayWall, upper: Path, lower: Path) -> None:
    (upper / "file").write_text("new")
    (upper / "file").chmod(0o6755)
    (upper / "dir").mkdir()
    _whiteout(upper / "dir" / "a")
    (upper / "made").mkdir(mode=0o700)
    (upper / "made" / "in").write_text("in")
    wall.apply()
    assert (lower / "file").read_text() == "new"
    assert stat.S_IMODE((lower / "file").stat().st_mode) == 0o755, "set-id bits must not come out"
    assert sorted(os.listdir(lower / "dir")) == ["b"]
    assert (lower / "made" / "in").read_text() == "in"
    assert (lower / "made").stat().st_mode & 0o777 == 0o700
    assert sorted(os.listdir(lower)) == ["dir", "file", "link", "made"]


def test_an_opaque_directory_hides_what_was_there(
    wall: OverlayWall, upper: Path, lower: Path
) -> None:
    (upper / "dir").mkdir()
    _opaque(upper / "dir")
    (upper / "dir" / "b").write_text("again")
    assert wall.changes() == ("D dir/a", "M dir/b")
    wall.apply()
    assert os.listdir(lower / "dir") == ["b"]
    assert (lower / "dir" / "b").read_text() == "again"


def test_a_file_becomes_a_directory_and_the_other_way(
    wall: OverlayWall, upper: Path, lower: Path
) -> None:
    (upper / "file").mkdir()
    (upper / "file" / "in").write_text("in")
    (upper / "dir").write_text("flat")
    assert wall.changes() == ("M dir", "M file/", "A file/in")
    wall.apply()
    assert (lower / "dir").read_text() == "flat"
    assert (lower / "file" / "in").read_text() == "in"


def test_a_hosts_link_is_replaced_and_never_followed(
    wall: OverlayWall, upper: Path, lower: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (lower / "out").symlink_to(outside)
    (upper / "out").mkdir()
    (upper / "out" / "kept").write_text("overwritten")
    (upper / "link").write_text("a file now")
    wall.apply()
    assert (outside / "kept").read_text() == "kept"
    assert (lower / "out" / "kept").read_text() == "overwritten"
    assert not (lower / "out").is_symlink()
    assert (lower / "file").read_text() == "old"
    assert (lower / "link").read_text() == "a file now"


def test_a_link_out_of_the_sandbox_stays_a_link(
    wall: OverlayWall, upper: Path, lower: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (upper / "grab").symlink_to(tmp_path / "secret")
    (upper / "file").symlink_to("/etc/shadow")
    wall.apply()
    assert (lower / "grab").is_symlink()
    assert os.readlink(lower / "file") == "/etc/shadow"


def test_what_is_no_file_is_not_taken(wall: OverlayWall, upper: Path, lower: Path) -> None:
    os.mkfifo(upper / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(upper / "socket"))
        wall.apply()
    assert sorted(os.listdir(lower)) == ["dir", "file", "link"]


def test_depth_is_bounded(wall: OverlayWall, upper: Path) -> None:
    deep = upper
    for _ in range(300):
        deep = deep / "d"
        deep.mkdir()
    with pytest.raises(Conflict, match=r"d/d/.* is nested deeper than 256"):
        wall.changes()
    with pytest.raises(Conflict, match=r"d/d/.* is nested deeper than 256"):
        wall.apply()


def test_a_folder_that_may_not_be_written_is_told_first(as_user: Any) -> None:
    """Of an ordinary user's: root may write anywhere."""
    script = """
import os, sys
from agentd import Sandbox
from agentd.model.errors import AgentdError
os.makedirs("w/closed"); os.chmod("w/closed", 0o555)
with Sandbox.create(workspace="w:cow") as box:
    assert box.run(["sh", "-c", "echo 1 > a; chmod 755 closed; echo 1 > closed/b"]).exit_code == 0
    try:
        box.apply()
    except AgentdError as error:
        print(error)
print(os.listdir("w"), os.listdir("w/closed"))
"""
    said = as_user.python("-c", script)
    assert b"closed/ may not be written here" in said.stdout, said.stderr
    assert b"['closed'] []" in said.stdout
