import errno
import json
import os
import subprocess
import sys

import pytest

from agentd.guest import fs, wire

OPS = fs.OPERATIONS


def test_stat_describes_each_type_and_follows_no_link(new_channel, tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    (tmp_path / "f").chmod(0o640)
    os.mkfifo(tmp_path / "p")
    (tmp_path / "l").symlink_to("f")
    got = {}
    for name in ("f", "p", "l", ""):
        last = new_channel().start(OPS["fs.stat"], path=str(tmp_path / name)).last
        got[name] = last["entry"]
    assert [got[n]["type"] for n in ("f", "p", "l", "")] == ["file", "fifo", "link", "dir"]
    assert (got["f"]["size"], got["f"]["mode"], got["f"]["name"]) == (5, 0o640, "f")
    assert got["l"]["target"] == "f"
    assert "target" not in got["f"]


@pytest.mark.parametrize("path", ["relative", "/a\0b", "/" + "x" * 4096, "/\ud800", 7, None])
def test_bad_paths_are_refused(new_channel, path):
    for op in OPS:
        last = new_channel().start(OPS[op], path=path, to="/tmp/never").last
        assert last["event"] == "error", op
    assert not os.path.exists("/tmp/never")


def test_list_5000_entries_in_batches(new_channel, tmp_path):
    for number in range(5000):
        (tmp_path / f"n{number}").touch()
    (tmp_path / "n0").unlink()
    (tmp_path / "n0").symlink_to("/nowhere")
    channel = new_channel().start(OPS["fs.list"], path=str(tmp_path)).run()
    assert channel.last == {"event": "result", "count": 5000}
    batches = [event["entries"] for event in channel.events[:-1]]
    assert max(map(len, batches)) <= 1000
    entries = {entry["name"]: entry for batch in batches for entry in batch}
    assert set(entries) == {f"n{n}" for n in range(5000)}
    assert entries["n0"]["target"] == "/nowhere"
    assert entries["n1"]["path"] == str(tmp_path / "n1")


def test_list_batches_fit_a_frame_whatever_the_names(new_channel, tmp_path):
    long = tmp_path / ("\U0001f600" * 60)
    long.mkdir()
    for number in range(1200):
        (long / f"{number:05}{chr(0x1F600) * 60}").touch()
    channel = new_channel().start(OPS["fs.list"], path=str(long)).run()
    assert channel.last["count"] == 1200
    assert len(channel.events) > 2
    for event in channel.events:
        assert len(json.dumps(event)) < wire.MAX_PAYLOAD


def test_a_listing_is_bounded_in_bytes_by_the_agent_itself(new_channel, tmp_path, monkeypatch):
    """Of whatever host asks: the entries of one listing, names, paths and links' targets."""
    monkeypatch.setattr(fs, "MAX_LISTING", 100_000)
    for number in range(20):
        (tmp_path / f"l{number}").symlink_to("t" * 4000)
    channel = new_channel().start(OPS["fs.list"], path=str(tmp_path)).run()
    assert channel.last["event"] == "result"
    for number in range(20, 30):
        (tmp_path / f"l{number}").symlink_to("t" * 4000)
    last = new_channel().start(OPS["fs.list"], path=str(tmp_path)).run().last
    assert (last["event"], last["errno"]) == ("error", errno.EFBIG)
    assert "its listing is over 100000 bytes" in last["message"]


def test_list_rests_while_the_buffer_is_full_and_can_be_cancelled(new_channel, tmp_path):
    (tmp_path / "a").touch()
    channel = new_channel(credit=0).start(OPS["fs.list"], path=str(tmp_path))
    assert channel.events == []
    channel.give(1)
    assert channel.run().last["count"] == 1
    before = len(os.listdir("/proc/self/fd"))
    other = new_channel(credit=0).start(OPS["fs.list"], path=str(tmp_path))
    other.operation.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_mkdir_mode_is_exact_and_parents_are_made(new_channel, tmp_path):
    path = tmp_path / "a" / "b" / "c"
    missing = new_channel().start(OPS["fs.mkdir"], path=str(path)).last
    assert missing["errno"] == errno.ENOENT
    made = new_channel().start(OPS["fs.mkdir"], path=str(path), mode=0o777, parents=True).last
    assert made["event"] == "result"
    assert path.stat().st_mode & 0o7777 == 0o777
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o755
    again = new_channel().start(OPS["fs.mkdir"], path=str(path), parents=True).last
    assert again["event"] == "result"
    plain = new_channel().start(OPS["fs.mkdir"], path=str(path)).last
    assert plain["errno"] == errno.EEXIST


def test_move_and_its_refusals(new_channel, tmp_path):
    (tmp_path / "a").write_text("x")
    args = {"path": str(tmp_path / "a"), "to": str(tmp_path / "b")}
    assert new_channel().start(OPS["fs.move"], **args).last["event"] == "result"
    assert (tmp_path / "b").read_text() == "x"
    gone = new_channel().start(OPS["fs.move"], **args).last
    assert gone["errno"] == errno.ENOENT
    assert args["to"] in gone["message"]
    args = {"path": str(tmp_path / "b"), "to": "/proc/never"}
    across = new_channel().start(OPS["fs.move"], **args).last
    assert (across["errno"], "another filesystem" in across["message"]) == (errno.EXDEV, True)


def test_remove_never_follows_a_link(new_channel, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "link").symlink_to(outside)
    (tree / "top").symlink_to(outside)
    (tmp_path / "alias").symlink_to(tree)
    alias = new_channel()
    alias.start(OPS["fs.remove"], path=str(tmp_path / "alias") + "/", recursive=True).run()
    assert alias.last["event"] == "result"
    assert (tree / "sub").is_dir()
    channel = new_channel().start(OPS["fs.remove"], path=str(tree), recursive=True).run()
    assert channel.last == {"event": "result", "count": 4}
    assert not tree.exists()
    assert (outside / "keep").read_text() == "kept"


def test_remove_without_recursive_keeps_a_full_directory(new_channel, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").touch()
    last = new_channel().start(OPS["fs.remove"], path=str(tmp_path / "d")).last
    assert last["errno"] == errno.ENOTEMPTY
    assert (tmp_path / "d" / "f").exists()


@pytest.mark.parametrize("path", ["/", "//", "/.", "/tmp/..", "/proc/self/root/tmp/never"])
def test_remove_refuses_the_root_and_magic_links(new_channel, path):
    last = new_channel().start(OPS["fs.remove"], path=path, recursive=True).last
    assert last["event"] == "error"
    assert last["errno"] in (errno.EINVAL, errno.ELOOP)


@pytest.mark.parametrize("remembered", [10_000, 700])
def test_remove_3000_levels_in_three_descriptors(new_channel, tmp_path, monkeypatch, remembered):
    monkeypatch.setattr("agentd.guest.removal.MAX_DEPTH", remembered)
    fd = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("deep", dir_fd=fd)
    name = "deep"
    for _ in range(3000):
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd, name = below, "d"
        os.mkdir("d", dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    channel = new_channel().start(OPS["fs.remove"], path=str(tmp_path / "deep"), recursive=True)
    assert channel.operation is not None
    assert len(os.listdir("/proc/self/fd")) < 100
    assert channel.run().last == {"event": "result", "count": 6001}
    assert os.listdir(tmp_path) == []


def test_remove_stops_when_its_way_back_was_moved(new_channel, tmp_path):
    deep = tmp_path / "tree" / "a" / "b"
    deep.mkdir(parents=True)
    for number in range(3000):
        (deep / f"{number}").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    channel = new_channel()
    channel.start(OPS["fs.remove"], path=str(tmp_path / "tree"), recursive=True)
    assert channel.last is None
    deep.rename(elsewhere / "b")
    assert "moved while it was removed" in channel.run().last["message"]
    assert (elsewhere / "precious").exists()


MOUNT_POINT = """
import ctypes, os, sys
from agentd.guest import fs
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0, ctypes.get_errno()
assert libc.mount(b"none", b"/", None, 16384 | (1 << 18), None) == 0
assert libc.mount(b"tmpfs", sys.argv[1].encode(), b"tmpfs", 0, None) == 0
os.close(os.open(sys.argv[1] + "/kept", os.O_CREAT))

class Channel:
    def credit(self): return 1
    def fail(self, error): print(error.errno, str(error))

for path in sys.argv[1:]:
    fs.OPERATIONS["fs.remove"](Channel(), {"path": path, "recursive": True}, [])
print(os.listdir(sys.argv[1]))
"""


@pytest.mark.root
def test_remove_spares_a_mount_point(tmp_path):
    (tmp_path / "tree" / "mount").mkdir(parents=True)
    argv = [sys.executable, "-c", MOUNT_POINT, str(tmp_path / "tree" / "mount")]
    run = subprocess.run([*argv, str(tmp_path / "tree")], check=False, capture_output=True)
    assert run.returncode == 0, run.stderr
    at_it, above_it, left = run.stdout.decode().splitlines()
    assert at_it.startswith(f"{errno.EBUSY} ")
    assert "mount point" in at_it
    assert above_it.startswith(f"{errno.EBUSY} ")
    assert left == "['kept']"
