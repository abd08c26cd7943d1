import errno
import io
import os
import socket
import tarfile
from pathlib import Path
from typing import Any

import pytest

from agentd.guest import tar, wire
from agentd.guest.fs_tar import OPERATIONS, TarWriteWhole

READ, WRITE = OPERATIONS["fs.tar_read"], OPERATIONS["fs.tar_write"]


def read(new_channel: Any, path: Any, **options: Any) -> Any:
    return new_channel(**options).start(READ, path=str(path)).run()


def put(channel: Any, data: bytes, piece: int = 1000) -> Any:
    for at in range(0, len(data), piece):
        if channel.last is not None:
            break
        channel.operation.on_data(wire.DATA, data[at : at + piece])
    if channel.last is None:
        channel.operation.on_eof(wire.DATA_EOF)
    return channel.run().last


def packed(*members: tuple[str, bytes, Any], format: int = tarfile.GNU_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o750
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                archive.addfile(info)
    return sink.getvalue()


DIR, FILE, LINK, HARD = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.fixture
def tree(tmp_path: Any) -> Any:
    top = tmp_path / "top"
    (top / "a" / "empty").mkdir(parents=True)
    (top / "a" / "run").write_bytes(b"x" * 600_000)
    (top / "a" / "run").chmod(0o755)
    (top / ("n" * 200)).write_text("long")
    os.makedirs(os.fsencode(top) + b"/not-utf-8-\xff")
    (top / "link").symlink_to("t" * 300)
    (top / "none").write_text("")
    os.utime(top / "none", (1_000_000_000, 1_000_000_000))
    return top


@pytest.mark.parametrize("credit", [256 << 10, 700])
def test_it_is_a_tar_that_others_read(new_channel, tree, credit):
    channel = read(new_channel, tree, credit=credit)
    with tarfile.open(fileobj=io.BytesIO(channel.data)) as archive:
        found = {member.name: member for member in archive}
        data = archive.extractfile("top/a/run").read()
    assert set(found) == {
        "top",
        "top/a",
        "top/a/empty",
        "top/a/run",
        "top/" + "n" * 200,
        "top/not-utf-8-\udcff",
        "top/link",
        "top/none",
    }
    assert data == b"x" * 600_000
    assert found["top/a/run"].mode == 0o755
    assert found["top/link"].linkname == "t" * 300
    assert found["top/none"].mtime == 1_000_000_000
    assert {(m.uid, m.gid, m.uname) for m in found.values()} == {(0, 0, "")}
    assert channel.last == {"event": "result", "count": 8, "size": 600_004}
    assert len(channel.data) % 512 == 0
    assert channel.data.endswith(tar.END)


def test_it_comes_back_as_it_was(new_channel, tree, tmp_path):
    data = read(new_channel, tree).data
    channel = new_channel().start(WRITE, path=str(tmp_path / "back"), whole=True)
    assert not (tmp_path / "back").exists()
    assert put(channel, data) == {"event": "result", "count": 8, "size": 600_004}
    found = [Path(where, name) for where, below, names in os.walk(tree) for name in below + names]
    assert len(found) == 7  # and the folder itself
    for path in found:
        other = tmp_path / "back" / path.relative_to(tree)
        assert other.lstat().st_mode == path.lstat().st_mode
        if not path.is_symlink():
            assert int(other.stat().st_mtime) == int(path.stat().st_mtime)
    assert sorted(os.listdir(tmp_path)) == ["back", "top"]


def test_what_cannot_be_packed_is_named_in_it_too(new_channel, tmp_path):
    (tmp_path / "t").mkdir()
    os.mkfifo(tmp_path / "t" / "fifo")
    channel = read(new_channel, tmp_path / "t")
    assert channel.last["event"] == "error"
    assert channel.last["message"].startswith("t/fifo is a fifo")
    with pytest.raises(tar.TarError, match="t/fifo is a fifo"):
        list(tar.TarDecoder().feed(channel.data))


def test_sockets_are_left_out_and_told(new_channel, tmp_path):
    (tmp_path / "t").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "t" / "s"))
        data = read(new_channel, tmp_path / "t").data
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["t", "t"]
        assert archive.getmembers()[1].pax_headers["AGENTD.skipped"] == "1 socket, as t/s"


@pytest.mark.parametrize("length", [0, 100])
def test_a_file_that_shrinks_is_an_error_and_the_archive_stays_one(new_channel, tmp_path, length):
    (tmp_path / "t").mkdir()
    path = tmp_path / "t" / "f"
    path.write_bytes(b"x" * 2_000_000)
    channel = new_channel(credit=1000, regrant=False).start(READ, path=str(tmp_path / "t"))
    channel.run(lambda: bool(channel.data))
    os.truncate(path, length)
    channel.regrant = True
    channel.give(10_000_000)
    channel.run()
    assert channel.last["message"] == "t/f became shorter while it was read: copy again"
    with pytest.raises(tar.TarError, match="became shorter"):
        list(tar.TarDecoder().feed(channel.data))


def test_a_file_that_grows_is_cut_where_it_ended(new_channel, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 600_000)
    channel = new_channel(credit=1000, regrant=False).start(READ, path=str(path))
    channel.run(lambda: bool(channel.data))
    with open(path, "ab") as file:
        file.write(b"y" * 1_000_000)
    channel.give(10_000_000)
    assert channel.run().last["size"] == 600_000
    with tarfile.open(fileobj=io.BytesIO(channel.data)) as archive:
        assert archive.extractfile("f").read() == b"x" * 600_000


def test_its_bounds(new_channel, tmp_path, monkeypatch):
    deep = tmp_path / "t"
    for _ in range(260):
        deep.mkdir()
        deep = deep / "d"
    assert "256 folders deep" in read(new_channel, tmp_path / "t").last["message"]
    monkeypatch.setattr(tar, "MAX_ENTRIES", 10)
    assert "over 10 files" in read(new_channel, tmp_path / "t").last["message"]
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 43)
    assert "more than what is left" in read(new_channel, tmp_path / "sparse").last["message"]


def test_leaving_it_midway_leaves_no_descriptor(new_channel, tree):
    before = len(os.listdir("/proc/self/fd"))
    channel = new_channel(credit=1000, regrant=False).start(READ, path=str(tree))
    channel.run(lambda: bool(channel.data))
    channel.operation.close()
    assert len(os.listdir("/proc/self/fd")) == before


# --- unpacking ---


def test_into_a_folder_over_what_is_there(new_channel, tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "f").write_text("old")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "l").symlink_to("kept")
    members = [("./", DIR, ""), ("./f", FILE, b"new"), ("d/e", FILE, b"x"), ("./l", FILE, b"file")]
    members += [("h", HARD, "d/e"), ("s", LINK, "/anywhere")]
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        channel = new_channel().start(WRITE, path=str(tmp_path))
        assert put(channel, packed(*members, format=format))["event"] == "result"
    found = {name: (tmp_path / name).read_text() for name in ("kept", "f", "d/e", "l", "h")}
    assert found == {"kept": "kept", "f": "new", "d/e": "x", "l": "file", "h": "x"}
    assert not (tmp_path / "l").is_symlink()
    assert os.readlink(tmp_path / "s") == "/anywhere"
    assert (tmp_path / "h").stat().st_nlink == 2


@pytest.mark.parametrize(
    "members",
    [
        [("../out", FILE, b"x")],
        [("link/out", FILE, b"x")],
        [("link", DIR, ""), ("link/out", FILE, b"x")],
        [("h", HARD, "link/secret")],
        [("h", HARD, "../outside/secret")],
        [("folder", FILE, b"x")],
        [("n", tarfile.CHRTYPE, "")],
    ],
)
def test_nothing_is_written_beside_it(new_channel, tmp_path, members):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (tmp_path / "root" / "folder").mkdir(parents=True)
    (tmp_path / "root" / "link").symlink_to("../outside")
    channel = new_channel().start(WRITE, path=str(tmp_path / "root"))
    assert put(channel, packed(*members))["event"] == "error"
    assert os.listdir(tmp_path / "outside") == ["secret"]
    assert (tmp_path / "outside" / "secret").stat().st_nlink == 1
    assert sorted(os.listdir(tmp_path / "root")) == ["folder", "link"]


@pytest.mark.parametrize("end", ["cut", "cancelled", "refused"])
def test_a_whole_tree_or_nothing(new_channel, tmp_path, end):
    data = packed(("t", DIR, ""), *((f"t/{n}", FILE, b"x" * 600) for n in range(100)))
    channel = new_channel().start(WRITE, path=str(tmp_path / "t"), whole=True)
    channel.operation.on_data(wire.DATA, data[:20_000])
    (beside,) = os.listdir(tmp_path)
    assert beside.startswith(".t.") and beside.endswith(".agentd")
    if end == "cut":
        channel.operation.on_eof(wire.DATA_EOF)
        assert "cut off" in channel.run().last["message"]
    elif end == "refused":
        channel.operation.on_data(wire.DATA, packed(("u", FILE, b"x"))[: 1 << 10])
        assert channel.run().last["event"] == "error"
    else:
        channel.operation.close()
    channel.loop.after(0.2, channel.loop.stop)
    channel.loop.run()
    assert os.listdir(tmp_path) == []


def test_only_a_whole_tree_replaces(new_channel, tmp_path):
    (tmp_path / "old").touch()
    channel = new_channel().start(WRITE, path=str(tmp_path), replace=True)
    assert "ask for whole" in put(channel, packed(("new", FILE, b"")))["message"]
    assert os.listdir(tmp_path) == ["old"]


def test_in_the_place_of_what_is_there(new_channel, tmp_path):
    (tmp_path / "t" / "deep").mkdir(parents=True)
    data = packed(("x", DIR, ""), ("x/new", FILE, b"new"))
    refused = new_channel().start(WRITE, path=str(tmp_path / "t"), whole=True).last
    assert refused["errno"] == errno.EEXIST
    channel = new_channel().start(WRITE, path=str(tmp_path / "t"), whole=True, replace=True)
    assert put(channel, data)["event"] == "result"
    assert os.listdir(tmp_path / "t") == ["new"]
    channel.loop.after(0.2, channel.loop.stop)
    channel.loop.run()
    assert os.listdir(tmp_path) == ["t"]


def test_a_filesystem_that_cannot_exchange(new_channel, tmp_path, monkeypatch):
    def cannot(*_: object) -> None:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(TarWriteWhole, "_rename", cannot)
    for kind in ("folder", "file", "nothing"):
        path = tmp_path / kind
        if kind == "folder":
            (path / "old").mkdir(parents=True)
        elif kind == "file":
            path.write_text("old")
        channel = new_channel().start(WRITE, path=str(path), whole=True, replace=True)
        assert put(channel, packed(("x", DIR, ""), ("x/new", FILE, b"new")))["event"] == "result"
        assert os.listdir(path) == ["new"]
