"""What comes out of a sandbox is hostile: its agent may be as well."""

import errno
import fcntl
import io
import os
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentd.client import copy, stage
from agentd.guest import tar, unpack
from agentd.model.errors import InvalidInput, OperationFailed, SandboxError

DIR, FILE, LINK, HARD, NODE, FIFO = (
    tarfile.DIRTYPE,
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.FIFOTYPE,
)
Member = tuple[str, bytes, Any]
TREE: Member = ("t", DIR, "")


def packed(*members: Member, format: int = tarfile.GNU_FORMAT, mode: int = 0o6777) -> bytes:
    """A tar of ``(name, type, link or bytes)``, by another program than ours."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, mode
            if kind == FILE:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                archive.addfile(info)
    return sink.getvalue()


class Sandbox:
    """Files as a sandbox offers them; what it says is what it was given."""

    def __init__(self, data: bytes, kind: str = "dir") -> None:
        self._data = data
        self._kind = kind

    def stat(self, path: str) -> Any:
        return SimpleNamespace(type=self._kind, mode=0o6777, size=len(self._data))

    def _read_tar(self, path: str) -> Iterator[bytes]:
        for at in range(0, len(self._data), 1000):
            yield self._data[at : at + 1000]

    read_iter = _read_tar


def out(data: bytes, target: Path, *, replace: bool = False) -> int:
    return copy.download(Sandbox(data), "/workspace/t", target, replace=replace).bytes


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_format_is_understood(tmp_path: Path, format: int) -> None:
    long = "/".join(["x" * 50] * (1 if format == tarfile.USTAR_FORMAT else 9))
    data = packed(TREE, (f"t/{long}", FILE, b"1" * 70_000), ("t/l", LINK, long[:90]), format=format)
    assert out(data, tmp_path / "to") == 70_000
    assert (tmp_path / "to" / long).read_bytes() == b"1" * 70_000
    assert os.readlink(tmp_path / "to" / "l") == long[:90]


@pytest.mark.parametrize(
    "members",
    [
        [TREE, ("../out", FILE, b"x")],
        [TREE, ("t/../../out", FILE, b"x")],
        [TREE, ("t/..", DIR, "")],
        [TREE, ("t/l", LINK, "../../out")],
        [TREE, ("t/l", LINK, "../out")],
        [TREE, ("t/l", LINK, "/etc")],
        [TREE, ("t/a", DIR, ""), ("t/a/up", LINK, ".."), ("t/l", LINK, "a/up/../out")],
        [TREE, ("t/l", LINK, "m"), ("t/m", LINK, "n/../.."), ("t/n", LINK, ".")],
        [("t", LINK, "x")],
        [TREE, ("t/h", HARD, "../../secret")],
        [TREE, ("t/f", FILE, b"x"), ("t/h", HARD, "t/f")],
        [TREE, ("t/n", NODE, "")],
        [TREE, ("t/n", FIFO, "")],
        [TREE, ("t/l", LINK, "a"), ("t/l/f", FILE, b"x"), ("t/a", DIR, "")],
        [TREE, ("t/f", FILE, b"x"), ("t/f", FILE, b"y")],
        [TREE, ("t/f", FILE, b"x"), ("t/f/g", FILE, b"y")],
        [TREE, ("u", DIR, "")],
        [TREE, ("/etc/passwd", FILE, b"x")],
        [("t/deep", DIR, "")],
        [],
    ],
)
def test_what_may_not_come_out_leaves_nothing(tmp_path: Path, members: list[Member]) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "into").mkdir()
    with pytest.raises(SandboxError, match="may not come out"):
        out(packed(*members), tmp_path / "into" / "target")
    assert sorted(os.listdir(tmp_path)) == ["into", "secret"]
    assert (tmp_path / "secret").stat().st_nlink == 1
    assert os.listdir(tmp_path / "into") == []


def test_links_within_come_along_whatever_their_order(tmp_path: Path) -> None:
    members = [TREE, ("t/l", LINK, "a/up/f"), ("t/a", DIR, ""), ("t/a/up", LINK, "..")]
    out(packed(*members, ("t/f", FILE, b"x"), ("t/loop", LINK, "loop")), tmp_path / "to")
    assert (tmp_path / "to" / "l").read_text() == "x"
    assert os.readlink(tmp_path / "to" / "loop") == "loop"


def test_tangled_links_do_not_take_for_ever(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(unpack, "MAX_STEPS", 1000)
    members = [(f"t/{n}", LINK, f"{n + 1}/" * 30) for n in range(60)]
    with pytest.raises(SandboxError, match="too tangled"):
        out(packed(TREE, *members), tmp_path / "to")


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_no_special_bits_come_out(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        out(packed(TREE, ("t/f", FILE, b"x"), ("t/d", DIR, "")), tmp_path / "t")
        copy.download(Sandbox(b"x", "file"), "/f", tmp_path / "g")
    finally:
        os.umask(before)
    for name in ("t", "t/f", "t/d", "g"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o755


@pytest.mark.parametrize("cut", [0, 400, 600, 20_000, 51_200])
def test_a_tar_that_is_cut_off_leaves_nothing(tmp_path: Path, cut: int) -> None:
    whole = packed(TREE, ("t/f", FILE, b"x" * 50_000))  # 51 200 bytes and its end
    with pytest.raises(SandboxError, match="cut off"):
        out(whole[:cut], tmp_path / "t")
    assert os.listdir(tmp_path) == []


def _head(**fields: bytes) -> bytes:
    """A header whose fields are as they should not be, with a checksum that holds."""
    block = bytearray(tar.encode(tar.TarEntry(b"t/f", "file")))
    for name, value in fields.items():
        at = {"size": 124, "mode": 100, "mtime": 136, "flag": 156}[name]
        block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (_head(size=b"\x80" + b"\xff" * 11), "more than what is left"),
        (_head(size=b"\xff" * 12), "malformed"),
        (_head(size=b"-1         "), "malformed"),
        (_head(size=b"77777777777", flag=b"x"), "over 65536"),
        (_head(size=b"77777777777", flag=b"L"), "over 65536"),
        (_head(flag=b"S"), "sparse"),
        (_head(flag=b"Z"), "unknown type"),
        (tar._records(b"x", {b"size": b"1" * 30}) + _head(), "malformed"),
        (tar._records(b"x", {b"path": b"t/" + b"x" * 256}) + _head(), "over 255 bytes"),
        (tar._records(b"x", {b"path": b"t/" + b"x/" * 300}) + _head(), "256 folders deep"),
        (tar._records(b"x", {b"path": b"t/" + b"x" * 200 + b"/y" * 2000}) + _head(), "4095"),
        (tar._records(b"x", {b"path": b"t/\0"}) + _head(), "leads out"),
        (tar._records(b"x", {b"GNU.sparse.size": b"1"}) + _head(), "sparse"),
        (_head(flag=b"x", size=b"00000000012\0") + b"99 path=x\n".ljust(512, b"\0"), "malformed"),
        (b"\x01" * 512, "no tar archive"),
        (tar.encode_error("x\x1b[2J: no"), r"x\\x1b\[2J: no"),
    ],
)
def test_a_malformed_one_is_refused_and_says_why(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(SandboxError, match=said):
        out(packed(TREE)[:512] + data + tar.END, tmp_path / "t")
    assert os.listdir(tmp_path) == []


def test_all_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_ENTRIES", 2)
    with pytest.raises(SandboxError, match="over 2 files"):
        out(packed(TREE, *((f"t/{n}", DIR, "") for n in range(2))), tmp_path / "t")
    monkeypatch.undo()
    monkeypatch.setattr(tar, "MAX_BYTES", 3)
    with pytest.raises(SandboxError, match=r"t/g .2 bytes. is more than what is left"):
        out(packed(TREE, ("t/f", FILE, b"xx"), ("t/g", FILE, b"xx")), tmp_path / "t")
    monkeypatch.undo()
    monkeypatch.setattr(unpack, "MAX_KEPT", 1000)
    with pytest.raises(SandboxError, match="take over 1000 bytes"):
        out(packed(TREE, *((f"t/{n}", LINK, "x") for n in range(20))), tmp_path / "t")
    assert os.listdir(tmp_path) == []


def test_holes_stay_holes(tmp_path: Path) -> None:
    data = bytes(1 << 20) + b"x" + bytes(1 << 20)
    out(packed(TREE, ("t/f", FILE, data)), tmp_path / "t")
    assert (tmp_path / "t" / "f").read_bytes() == data
    assert (tmp_path / "t" / "f").stat().st_blocks * 512 < 1 << 19


def test_a_disk_that_is_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(unpack.os, "write", full)
    with pytest.raises(OperationFailed, match="No space left") as caught:
        out(packed(TREE, ("t/f", FILE, b"x")), tmp_path / "t")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    class Broken(Sandbox):
        def read_iter(self, path: str) -> Iterator[bytes]:
            yield b"half"
            raise ConnectionError

    (tmp_path / "f").write_text("old")
    with pytest.raises(ConnectionError):
        copy.download(Broken(b"", "file"), "/f", tmp_path / "f", replace=True)
    assert (tmp_path / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


# --- the stage ---


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_tree_takes_the_place_of_another_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    (tmp_path / "t" / "locked").mkdir(parents=True)
    (tmp_path / "t" / "locked" / "old").write_text("old")
    (tmp_path / "t" / "locked").chmod(0o555)
    if not exchanges:  # as some filesystems

        def cannot(*_: object) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        monkeypatch.setattr(stage.KERNEL, "renameat2", cannot)
    data = packed(TREE, ("t/new", FILE, b"new"))
    with pytest.raises(InvalidInput, match="exists already"):
        out(data, tmp_path / "t")
    assert os.listdir(tmp_path / "t") == ["locked"]
    out(data, tmp_path / "t", replace=True)
    assert os.listdir(tmp_path / "t") == ["new"]
    assert os.listdir(tmp_path) == ["t"]


def test_what_came_meanwhile_is_not_replaced_either(tmp_path: Path) -> None:
    class Slow(Sandbox):
        def _read_tar(self, path: str) -> Iterator[bytes]:
            yield from super()._read_tar(path)
            (tmp_path / "t").write_text("meanwhile")

    with pytest.raises(InvalidInput, match="exists already"):
        copy.download(Slow(packed(TREE)), "/t", tmp_path / "t")
    assert (tmp_path / "t").read_text() == "meanwhile"
    assert os.listdir(tmp_path) == ["t"]


def test_only_what_the_dead_left_is_cleared_up(tmp_path: Path) -> None:
    for name in (".agentd-cp-dead", ".agentd-cp-alive", ".agentd-cp-moved", ".agentd-other"):
        (tmp_path / name).mkdir()
    (tmp_path / ".agentd-cp-dead").chmod(0o700)
    (tmp_path / ".agentd-cp-dead" / "new").mkdir()
    (tmp_path / ".agentd-cp-moved" / "old").mkdir()  # what was there, moved away when it died
    (tmp_path / ".agentd-cp-link").symlink_to(tmp_path / ".agentd-other")
    fd = os.open(tmp_path / ".agentd-cp-alive", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        out(packed(TREE), tmp_path / "t")
    finally:
        os.close(fd)
    left = {".agentd-cp-alive", ".agentd-cp-moved", ".agentd-cp-link", ".agentd-other", "t"}
    assert set(os.listdir(tmp_path)) == left


def test_no_folder_to_write_to_is_told(tmp_path: Path) -> None:
    with pytest.raises(OperationFailed, match=r"cannot write to .*/absent: No such file"):
        out(packed(TREE), tmp_path / "absent" / "t")


def _staged(folder: Path) -> Path:
    return next(folder.glob(".agentd-cp-*"))


class Meddled(Sandbox):
    """Something happens on the host while the tree comes; then it breaks, or not."""

    def __init__(self, data: bytes, meddle: Callable[[], None], breaks: bool) -> None:
        super().__init__(data)
        self._meddle = meddle
        self._breaks = breaks

    def _read_tar(self, path: str) -> Iterator[bytes]:
        yield self._data[:1024]
        self._meddle()
        if self._breaks:
            raise ConnectionError("broken")
        yield self._data[1024:]


@pytest.mark.parametrize("breaks", [True, False])
def test_a_link_in_the_place_of_the_stage_leads_nowhere(tmp_path: Path, breaks: bool) -> None:
    """Whose the folder is, or who else may write to it, may rename what is made in it."""
    victim = tmp_path / "victim"
    (victim / "private").mkdir(parents=True)
    (victim / "private").chmod(0o755)
    here = tmp_path / "here"
    here.mkdir()

    def meddle() -> None:
        found = _staged(here)
        found.rename(tmp_path / "away")
        found.symlink_to(victim)

    box = Meddled(packed(TREE, ("t/f", FILE, b"1")), meddle, breaks)
    with pytest.raises(ConnectionError) if breaks else nullcontext():
        copy.download(box, "/t", here / "t")
    assert stat.S_IMODE((victim / "private").stat().st_mode) == 0o755
    assert os.listdir(victim) == ["private"]
    assert os.listdir(tmp_path / "away") == []


def test_a_link_in_the_place_of_a_folder_above_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "here").mkdir()

    def meddle() -> None:
        (tmp_path / "here").rename(tmp_path / "away")
        (tmp_path / "here").symlink_to("victim")

    copy.download(Meddled(packed(TREE), meddle, False), "/t", tmp_path / "here" / "t")
    assert os.listdir(tmp_path / "victim") == []
    assert os.listdir(tmp_path / "away") == ["t"]


def test_a_folder_that_was_given_a_stage_s_name_is_not_cleared_up(tmp_path: Path) -> None:
    for name, item in (("a", "thesis"), ("b", "new")):
        (tmp_path / f".agentd-cp-{name}").mkdir(mode=0o700)
        (tmp_path / f".agentd-cp-{name}" / item).mkdir()
    (tmp_path / ".agentd-cp-b").chmod(0o755)  # ours are closed to others
    out(packed(TREE), tmp_path / "t")
    assert sorted(os.listdir(tmp_path)) == [".agentd-cp-a", ".agentd-cp-b", "t"]


def test_a_deep_tree_is_replaced_too(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    fd = os.open(tmp_path / "t", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    out(packed(TREE), tmp_path / "t", replace=True)
    assert os.listdir(tmp_path) == ["t"]


def test_many_at_once_into_one_folder(tmp_path: Path) -> None:
    """None takes for left behind what another has just made."""
    start = threading.Barrier(8)

    def some(number: int) -> None:
        start.wait()
        for round in range(60):
            out(packed(TREE, ("t/f", FILE, b"1")), tmp_path / f"{number}-{round}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(some, range(8)))
    assert len(os.listdir(tmp_path)) == 8 * 60


@pytest.mark.parametrize("path", ["/workspace/..", "/workspace/."])
def test_what_has_no_name_of_its_own_lands_nowhere(tmp_path: Path, path: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="has no name of its own"):
        copy.download(Sandbox(packed(TREE)), path, f"{tmp_path}/a/b/", replace=True)
    assert os.listdir(tmp_path) == ["a"]


MOUNTED = """
import os, sys
from tests.unit.client.test_copy import FILE, TREE, out, packed
from agentd.model.errors import InvalidInput
from pathlib import Path
try:
    out(packed(TREE), Path("t"), replace=True)
except InvalidInput as error:
    print(error)
print(sorted(os.listdir("t/a b")), sorted(os.listdir(".")))
"""


def test_a_folder_with_a_mount_in_it_is_not_replaced(tmp_path: Path) -> None:
    """What is mounted there is not what was meant to be removed."""
    (tmp_path / "t" / "a b").mkdir(parents=True)
    mount = 'mount -t tmpfs none "t/a b" && touch "t/a b/kept" && exec "$@"'
    argv = ["unshare", "-rm", "sh", "-c", mount, "sh", sys.executable, "-c", MOUNTED]
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    ran = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    lines = ran.stdout.splitlines()
    assert "t/a b is a mount point in it" in lines[0], ran.stderr
    assert lines[1] == "['kept'] ['t']"


def test_a_connection_that_breaks_is_not_taken_for_the_source(tmp_path: Path) -> None:
    class Gone(Sandbox):
        def stat(self, path: str) -> Any:
            raise OperationFailed(path, errno=errno.ENOENT)

        def mkdir(self, path: str, *, parents: bool) -> None:
            pass

        def write(self, path: str, data: Any, **_: Any) -> int:
            raise ConnectionError("gone")

        _write_tar = write

    (tmp_path / "f").write_text("1")
    for source in (tmp_path / "f", tmp_path):
        with pytest.raises(ConnectionError):
            copy.upload(Gone(b""), source, "/x")


class _Endless(Sandbox):
    """It ends all the same, far beyond what may come, for a test of a copy that takes it all."""

    def _read_tar(self, path: str) -> Iterator[bytes]:
        yield packed(TREE)[:512]
        for _ in range(40 << 10):
            yield self._data
        yield tar.END


def _empty(kind: bytes) -> bytes:
    """A header that tells nothing."""
    info = tarfile.TarInfo("x")
    info.type = kind
    return info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bytes(1024), "goes on behind its end"),
        (_empty(tarfile.XHDTYPE), "over 64 headers"),
        (_empty(tarfile.XGLTYPE), "over 64 headers"),
        (_empty(tarfile.GNUTYPE_LONGNAME), "over 64 headers"),
    ],
)
def test_an_endless_stream_is_given_up(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(SandboxError, match=said):
        copy.download(_Endless(data), "/t", tmp_path / "t")
    assert os.listdir(tmp_path) == []


def test_the_owner_may_go_into_every_folder_that_came_out(tmp_path: Path) -> None:
    out(packed(TREE, ("t/d", DIR, ""), mode=0), tmp_path / "t")
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")} == {0o700}
