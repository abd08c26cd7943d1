"""What comes out of a sandbox is hostile."""

import io
import os
import tarfile

import pytest

from agentd.client.cli import tree
from agentd.model.errors import OperationFailed, SandboxError


def packed(*members):
    """A tar of ``(name, type, link or bytes)``."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o6777
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                tar.addfile(info)
    data = sink.getvalue()
    return [data[at : at + 1000] for at in range(0, len(data), 1000)]


DIR, FILE, LINK, HARD, NODE = (
    tarfile.DIRTYPE,
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
)


def test_a_tree_goes_there_and_back(tmp_path):
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "file").write_bytes(b"x" * 300_000)
    (source / "a" / "run").write_text("run")
    (source / "a" / "run").chmod(0o755)
    (source / "link").symlink_to("a/file")
    counter = tree.Counter()
    pieces = list(tree.pack(str(source), "named", counter))
    assert counter.bytes == 300_003
    assert tree.unpack(pieces, str(tmp_path / "back")) == 300_003
    back = tmp_path / "back"
    assert (back / "a" / "file").read_bytes() == b"x" * 300_000
    assert os.access(back / "a" / "run", os.X_OK)
    assert os.readlink(back / "link") == "a/file"
    assert (back / "a" / "b").is_dir()
    assert sorted(os.listdir(tmp_path)) == ["back", "source"]


def test_the_packers_names_stay_with_the_packer(tmp_path):
    (tmp_path / "f").write_text("x")
    data = b"".join(tree.pack(str(tmp_path), "n", tree.Counter()))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {(m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, "", "")}


@pytest.mark.parametrize(
    "members",
    [
        [("t", DIR, ""), ("../out", FILE, b"x")],
        [("t", DIR, ""), ("t/../../out", FILE, b"x")],
        [("t", DIR, ""), ("t/l", LINK, "../../out")],
        [("t", DIR, ""), ("t/l", LINK, "/etc")],
        [("t", DIR, ""), ("t/l", HARD, "../../secret")],
        [("t", DIR, ""), ("t/n", NODE, "")],
    ],
    ids=["above", "dots", "link out", "absolute link", "hard link out", "device"],
)
def test_nothing_leaves_the_target(tmp_path, members):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "into").mkdir()
    with pytest.raises(SandboxError, match="may not come out"):
        tree.unpack(packed(*members), str(tmp_path / "into" / "target"))
    assert sorted(os.listdir(tmp_path)) == ["into", "secret"]
    assert os.listdir(tmp_path / "into") == []


def test_an_absolute_name_is_below_the_target(tmp_path):
    name = f"{tmp_path}/evil"
    with pytest.raises((SandboxError, OperationFailed)):
        tree.unpack(packed(("t", DIR, ""), (name, FILE, b"x")), str(tmp_path / "target"))
    assert not (tmp_path / "evil").exists()


def test_no_special_bits_come_out(tmp_path):
    tree.unpack(packed(("t", DIR, ""), ("t/f", FILE, b"x")), str(tmp_path / "t"))
    assert not (tmp_path / "t" / "f").stat().st_mode & 0o6022


def test_two_trees_are_refused(tmp_path):
    with pytest.raises(OperationFailed, match="2 trees"):
        tree.unpack(packed(("a", DIR, ""), ("b", DIR, "")), str(tmp_path / "t"))


def test_a_tar_that_is_cut_off_leaves_nothing(tmp_path):
    whole = packed(("t", DIR, ""), ("t/f", FILE, b"x" * 50_000))
    with pytest.raises(Exception, match="end of data"):
        tree.unpack(whole[:20], str(tmp_path / "t"))
    assert os.listdir(tmp_path) == []


def test_members_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "MAX_MEMBERS", 2)
    with pytest.raises(SandboxError, match="over 2 files"):
        tree.unpack(packed(*((f"t{n}", DIR, "") for n in range(3))), str(tmp_path / "t"))


def test_over_what_is_there(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "old").write_text("old")
    tree.unpack(packed(("x", DIR, ""), ("x/new", FILE, b"new")), str(tmp_path / "t"))
    assert sorted(os.listdir(tmp_path / "t")) == ["new", "old"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(elsewhere)
    tree.unpack(packed(("x", DIR, ""), ("x/new", FILE, b"new")), str(tmp_path / "link"))
    assert not (tmp_path / "link").is_symlink()
    assert os.listdir(elsewhere) == []


def test_a_file_is_whole_or_not_there(tmp_path):
    def pieces():
        yield b"half"
        raise ConnectionError

    (tmp_path / "f").write_text("old")
    with pytest.raises(ConnectionError):
        tree.save(pieces(), str(tmp_path / "f"), 0o644)
    assert (tmp_path / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]
    assert tree.save(iter([b"n", b"ew"]), str(tmp_path / "f"), 0o750) == 3
    assert (tmp_path / "f").read_text() == "new"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o750
