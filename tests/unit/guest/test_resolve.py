"""Paths from requests where a filter answers ENOSYS to openat2(2): the same, from part to part."""

import errno
import os
from pathlib import Path

import pytest

from agentd.guest import resolve

FLAGS = {
    "read": os.O_RDONLY,
    "path": os.O_PATH,
    "directory": os.O_RDONLY | os.O_DIRECTORY,
    "no link": os.O_RDONLY | os.O_NOFOLLOW,
    "the link": os.O_PATH | os.O_NOFOLLOW,
}
NAMES = (
    "file", "folder", "folder/below", "folder/", "file/", "file/.", "folder/.", "folder/..", "..",
    ".", "to file", "to folder", "to folder/", "to folder/below", "to file/", "loop", "loop/x",
    "dangling", "far", "far/status", "chain", "up/folder/below", "nosuch", "nosuch/x",
    "folder/to up", "folder//below", "./file", "to fd", "to fd/x",
)  # fmt: skip
ABSOLUTE = (
    "/", "/proc/self/fd/0", "/proc/self/exe", "/proc/self/root/etc", "/proc/self/cwd",
    "/proc/thread-self/status", "/proc/mounts", "/proc/self/ns/pid", "/etc/passwd", "/..",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder/below"):
        (tmp_path / name).write_text(name)
    for name, target in {
        "to file": "file",
        "to folder": str(tmp_path / "folder"),
        "folder/to up": "../file",
        "up": "folder/..",
        "chain": "to file",
        "loop": "loop",
        "dangling": "nosuch",
        "far": "/proc/self",
        "to fd": "/proc/self/fd/0",
    }.items():
        (tmp_path / name).symlink_to(target)
    return tmp_path


def _opened(way: str, path: str, flags: int, resolve_: int = 0) -> object:
    """The file that it is, or the errno."""
    call = resolve.open_at if way == "openat2" else resolve._walk
    try:
        fd = call(-100, path, flags, resolve_)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    status = os.fstat(fd)
    assert not os.get_inheritable(fd)
    os.close(fd)
    return status.st_dev, status.st_ino


@pytest.mark.parametrize("flags", FLAGS)
def test_a_walk_is_as_the_call(folder: Path, monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    monkeypatch.chdir(folder)
    before = set(os.listdir("/proc/self/fd"))
    for path in (*NAMES, *(f"{folder}/{name}" for name in NAMES), *ABSOLUTE):
        expected = _opened("openat2", path, FLAGS[flags])
        found = _opened("walk", path, FLAGS[flags])
        assert found == expected, (path, found, expected)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_walk_stays_on_its_mount() -> None:
    for path in ("/proc", "/dev/null"):
        expected = _opened("openat2", path, os.O_PATH, resolve.RESOLVE_NO_XDEV)
        assert _opened("walk", path, os.O_PATH, resolve.RESOLVE_NO_XDEV) == expected == "EXDEV"
