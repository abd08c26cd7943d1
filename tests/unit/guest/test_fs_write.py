import errno
import os
import subprocess
import sys

import pytest

from agentd.guest import wire
from agentd.guest.fs_write import OPERATIONS

WRITE = OPERATIONS["fs.write"]

FULL_DISK = """
import ctypes, os, sys
from agentd.guest import fs_write, wire
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0, ctypes.get_errno()
assert libc.mount(b"none", b"/", None, 16384 | (1 << 18), None) == 0
assert libc.mount(b"tmpfs", sys.argv[1].encode(), b"tmpfs", 0, b"size=64k") == 0

class Channel:
    def grant(self, amount): pass
    def fail(self, error): print(error.errno, str(error))

operation = fs_write.OPERATIONS["fs.write"](Channel(), {"path": sys.argv[1] + "/big"}, [])
for _ in range(4):
    operation.on_data(wire.DATA, bytes(32 << 10))
operation.on_eof(wire.DATA_EOF)
operation.close()
print(os.listdir(sys.argv[1]))
"""


def put(channel, *chunks):
    for chunk in chunks:
        channel.operation.on_data(wire.DATA, chunk)
    channel.operation.on_eof(wire.DATA_EOF)
    return channel.last


def test_the_file_appears_whole_by_rename(new_channel, tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    channel = new_channel().start(WRITE, path=str(path), mode=0o750)
    channel.operation.on_data(wire.DATA, b"x" * 100_000)
    assert (path.read_text(), channel.granted) == ("old", 100_000)
    (temporary,) = (p for p in tmp_path.iterdir() if p != path)
    assert temporary.name.startswith(".f.")
    assert temporary.name.endswith(".agentd")
    assert temporary.stat().st_mode & 0o7777 == 0o750
    assert put(channel, b"y") == {"event": "result", "size": 100_001}
    assert path.read_bytes() == b"x" * 100_000 + b"y"
    assert path.stat().st_mode & 0o7777 == 0o750
    assert list(tmp_path.iterdir()) == [path]


def test_cancelling_leaves_the_old_file_and_nothing_else(new_channel, tmp_path):
    (tmp_path / "f").write_text("old")
    before = len(os.listdir("/proc/self/fd"))
    channel = new_channel().start(WRITE, path=str(tmp_path / "f"))
    channel.operation.on_data(wire.DATA, b"half")
    channel.operation.close()
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_link_is_replaced_and_not_written_through(new_channel, tmp_path):
    (tmp_path / "victim").write_text("safe")
    (tmp_path / "f").symlink_to("victim")
    put(new_channel().start(WRITE, path=str(tmp_path / "f")), b"new")
    assert (tmp_path / "victim").read_text() == "safe"
    assert (tmp_path / "f").read_text() == "new"
    assert not (tmp_path / "f").is_symlink()


def test_a_directory_swapped_for_a_link_meanwhile_changes_nothing(new_channel, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "outside").mkdir()
    channel = new_channel().start(WRITE, path=str(tmp_path / "d" / "f"))
    (tmp_path / "d").rename(tmp_path / "moved")
    (tmp_path / "d").symlink_to("outside")
    assert put(channel, b"new")["event"] == "result"
    assert os.listdir(tmp_path / "outside") == []
    assert (tmp_path / "moved" / "f").read_bytes() == b"new"


def test_refusals_come_before_any_data(new_channel, tmp_path):
    os.mkfifo(tmp_path / "p")
    (tmp_path / "d").mkdir()
    cases = {"d": errno.EISDIR, "p": errno.EINVAL, "no/f": errno.ENOENT, "x/": errno.EISDIR}
    for name, number in cases.items():
        channel = new_channel().start(WRITE, path=f"{tmp_path}/{name}")
        assert channel.last["errno"] == number, name
    assert sorted(os.listdir(tmp_path)) == ["d", "p"]


def test_parents_and_the_longest_name(new_channel, tmp_path):
    path = tmp_path / "a" / "b" / ("n" * 255)
    assert put(new_channel().start(WRITE, path=str(path), parents=True), b"1")["size"] == 1
    assert path.read_bytes() == b"1"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


def test_a_directory_made_at_the_path_meanwhile_is_an_error(new_channel, tmp_path):
    channel = new_channel().start(WRITE, path=str(tmp_path / "f"))
    (tmp_path / "f").mkdir()
    assert put(channel, b"1")["errno"] == errno.EISDIR
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.root
def test_a_full_disk_is_told_and_the_temporary_file_goes(tmp_path):
    argv = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    run = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    error, files = run.stdout.splitlines()
    assert error.startswith(f"{errno.ENOSPC} ")
    assert str(tmp_path / "big") in error
    assert files == "[]"
