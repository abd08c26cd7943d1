"""Files inside, through the agent: the same behind every wall."""

import contextlib
import errno
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd import AgentdError, Files, InvalidInput, OperationFailed, Sandbox
from agentd.testing.same import same

pytestmark = pytest.mark.shares_machine


@pytest.fixture
def files(sandbox: Sandbox) -> Files:
    return sandbox.files


@pytest.mark.parametrize("size", [0, 1, 65_536, 5_000_001])
def test_what_is_written_is_read(files: Files, workspace: str, size: int) -> None:
    data = os.urandom(size)
    assert files.write(f"{workspace}/file", data) == size
    same(files.read(f"{workspace}/file"), data)
    same(b"".join(files.read_iter(f"{workspace}/file")), data)


def test_a_command_sees_what_was_written_and_the_other_way(
    sandbox: Sandbox, files: Files, workspace: str
) -> None:
    files.write(f"{workspace}/script", "#!/bin/sh\necho ran by $0 > out\n", mode=0o755)
    assert sandbox.run(["./script"]).exit_code == 0
    assert files.read_text(f"{workspace}/out") == "ran by ./script\n"


def test_what_is_there_exists(sandbox: Sandbox, files: Files, workspace: str) -> None:
    files.write(f"{workspace}/file", b"")
    sandbox.run("ln -s nowhere link", check=True)
    for name in ("file", "link", ""):
        assert files.exists(f"{workspace}/{name}")
    for name in ("none", "none/deeper", "file/below"):
        assert not files.exists(f"{workspace}/{name}")
    with pytest.raises(InvalidInput):
        files.exists(f"{workspace}/\0")


def test_parts_of_a_file(files: Files, workspace: str) -> None:
    files.write(f"{workspace}/file", b"0123456789")
    assert files.read(f"{workspace}/file", 3, 4) == b"3456"
    assert files.read(f"{workspace}/file", 8) == b"89"
    assert files.read(f"{workspace}/file", 100) == b""


def test_writing_takes_iterators_and_open_files(files: Files, workspace: str) -> None:
    def pieces() -> Iterator[bytes]:
        for letter in (b"a", b"b", b"c"):
            yield letter * 100_000

    assert files.write(f"{workspace}/a", pieces()) == 300_000
    assert files.write(f"{workspace}/b", io.BytesIO(b"z" * 10)) == 10
    assert files.read(f"{workspace}/a")[99_999:100_001] == b"ab"


def test_a_failed_write_leaves_the_old_file(files: Files, workspace: str) -> None:
    files.write(f"{workspace}/file", b"old")

    def pieces() -> Iterator[bytes]:
        yield b"new" * 1000
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        files.write(f"{workspace}/file", pieces())
    assert files.read(f"{workspace}/file") == b"old"


def test_modes_and_parents(files: Files, workspace: str) -> None:
    path = f"{workspace}/a/b/c"
    with pytest.raises(OperationFailed) as caught:
        files.write(path, b"x")
    assert caught.value.errno == errno.ENOENT
    files.write(path, b"x", mode=0o640, parents=True)
    assert files.stat(path).mode & 0o777 == 0o640


def test_stat_tells_the_kinds_apart(sandbox: Sandbox, files: Files, workspace: str) -> None:
    sandbox.run("echo text > file; mkdir dir; ln -s file link; mkfifo fifo")
    kinds = {name: files.stat(f"{workspace}/{name}") for name in ("file", "dir", "link", "fifo")}
    assert {name: entry.type for name, entry in kinds.items()} == {
        "file": "file",
        "dir": "dir",
        "link": "link",
        "fifo": "fifo",
    }
    assert kinds["file"].size == 5
    assert kinds["link"].target == "file"
    assert kinds["file"].path == f"{workspace}/file"


def test_the_root_is_told_however_it_is_named(files: Files) -> None:
    for path in ("/", "//", "/tmp/..", "/tmp/./../.."):
        entry = files.stat(path)
        assert (entry.name, entry.type) == ("/", "dir"), path


def test_a_listing_is_complete(sandbox: Sandbox, files: Files, workspace: str) -> None:
    sandbox.run("mkdir many; cd many; touch $(seq 1 1500) .hidden")
    names = {entry.name for entry in files.list(f"{workspace}/many")}
    assert names == {*(str(n) for n in range(1, 1501)), ".hidden"}


def test_names_that_are_not_text(sandbox: Sandbox, files: Files, workspace: str) -> None:
    sandbox.run(r"mkdir odd; cd odd; touch $(printf 'a\377')")
    (entry,) = files.list(f"{workspace}/odd")
    if sandbox.url:  # JSON has no place for it: it is seen, and cannot be named
        assert entry.name in {"a?", "a\N{REPLACEMENT CHARACTER}"}
    else:
        assert entry.name == "a\udcff"


@pytest.mark.parametrize(("path", "name"), [(".", ""), ("a/..", ""), ("a/.", "a")])
def test_a_path_that_ends_in_dots_is_where_it_leads(
    files: Files, workspace: str, path: str, name: str
) -> None:
    files.mkdir(f"{workspace}/a")
    assert files.stat(f"{workspace}/{path}").name == (name or os.path.basename(workspace))


def test_directories_are_made_moved_and_removed(files: Files, workspace: str) -> None:
    files.mkdir(f"{workspace}/one/two", parents=True)
    files.write(f"{workspace}/one/two/file", b"data")
    files.move(f"{workspace}/one", f"{workspace}/moved")
    assert files.read(f"{workspace}/moved/two/file") == b"data"
    with pytest.raises(OperationFailed) as caught:
        files.remove(f"{workspace}/moved")
    assert caught.value.errno == errno.ENOTEMPTY
    files.remove(f"{workspace}/moved", recursive=True)
    with pytest.raises(OperationFailed) as caught:
        files.stat(f"{workspace}/moved")
    assert caught.value.errno == errno.ENOENT


def test_removing_a_link_spares_its_target(sandbox: Sandbox, files: Files, workspace: str) -> None:
    sandbox.run("mkdir kept; echo data > kept/file; mkdir tree; ln -s ../kept tree/link")
    files.remove(f"{workspace}/tree", recursive=True)
    assert files.read(f"{workspace}/kept/file") == b"data\n"


@pytest.mark.parametrize(
    ("path", "number"), [("absent", errno.ENOENT), (".", errno.EISDIR), ("file/x", errno.ENOTDIR)]
)
def test_the_kernels_own_error_comes_back(
    files: Files, workspace: str, path: str, number: int
) -> None:
    files.write(f"{workspace}/file", b"")
    with pytest.raises(OperationFailed) as caught:
        files.read(f"{workspace}/{path}")
    assert caught.value.errno == number
    assert path in str(caught.value)


def test_a_watch_tells_of_what_changes_once_it_is_there(files: Files, workspace: str) -> None:
    files.mkdir(f"{workspace}/watched")
    late = threading.Timer(60, files.write, (f"{workspace}/watched/late", b""))
    with contextlib.closing(files.watch(f"{workspace}/watched")) as changes:
        files.write(f"{workspace}/watched/file", b"")
        late.start()
        told = {"file", "late"}  # what is written may have another name first
        change = next(change for change in changes if change.path.rpartition("/")[2] in told)
    late.cancel()
    late.join()
    assert change.kind in {"create", "modify", "move"}
    assert change.path == f"{workspace}/watched/file"


def test_a_watched_file_that_is_written_anew_is_told_as_changed(
    files: Files, workspace: str
) -> None:
    path = f"{workspace}/watched-itself"
    files.write(path, b"")
    with contextlib.closing(files.watch(path)) as changes:
        for data in (b"a", b"bc"):
            files.write(path, data)
            change = next(changes)
            assert (change.kind, change.path) == ("modify", path)


def test_folders_go_in_and_come_out(files: Files, workspace: str, tmp_path: Path) -> None:
    (tmp_path / "in" / "sub" / "empty").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "run").write_bytes(b"#!/bin/sh\necho ran\n" + b"#" * 1_000_000)
    (tmp_path / "in" / "sub" / "run").chmod(0o755)
    (tmp_path / "in" / ("n" * 200)).write_text("long")
    (tmp_path / "in" / "link").symlink_to("sub/run")
    size = 1_000_023
    assert files.upload(tmp_path / "in", f"{workspace}/tree") == size
    assert files.stat(f"{workspace}/tree/sub/run").mode & 0o100
    assert files.download(f"{workspace}/tree", tmp_path / "out") == size
    for folder, names, others in os.walk(tmp_path / "in"):
        back = str(folder).replace("/in", "/out", 1)
        assert sorted(os.listdir(back)) == sorted(names + others)
        for name in (*names, *others):
            one, other = os.lstat(f"{folder}/{name}"), os.lstat(f"{back}/{name}")
            assert one.st_mode == other.st_mode
    assert (tmp_path / "out" / "link").read_bytes() == (tmp_path / "in" / "link").read_bytes()

    with pytest.raises(AgentdError, match="exists already"):
        files.download(f"{workspace}/tree/sub/run", tmp_path / "in" / "link")
    (tmp_path / "new").mkdir()
    assert files.upload(tmp_path / "new", f"{workspace}/tree", replace=True) == 0
    assert files.list(f"{workspace}/tree") == []
    assert files.download(f"{workspace}/tree", tmp_path / "out", replace=True) == 0
    assert os.listdir(tmp_path / "out") == []


def test_a_link_with_a_slash_is_the_folder_that_it_leads_to(
    sandbox: Sandbox, files: Files, workspace: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("text")
    (tmp_path / "link").symlink_to("in")
    assert files.upload(f"{tmp_path}/link/", f"{workspace}/tree") == 4
    assert sandbox.run(["sh", "-c", "ln -s tree link; ln -s tree/file other"]).exit_code == 0
    (tmp_path / "out").mkdir()
    assert files.download(f"{workspace}/link/", f"{tmp_path}/out/") == 4
    assert [*os.walk(tmp_path / "out")] == [
        (f"{tmp_path}/out", ["link"], []),
        (f"{tmp_path}/out/link", [], ["file"]),
    ]
    with pytest.raises(AgentdError, match="link is a symbolic link") as caught:
        files.download(f"{workspace}/link", tmp_path / "no")
    assert f"{workspace}/link/" in caught.value.remediation
    with pytest.raises(AgentdError, match="Not a directory"):
        files.download(f"{workspace}/other/", tmp_path / "no")
    assert sorted(os.listdir(tmp_path)) == ["in", "link", "out"]


def test_a_tree_with_a_fifo_is_refused_both_ways(
    sandbox: Sandbox, files: Files, workspace: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "fifo")
    with pytest.raises(AgentdError, match="tree/fifo is a fifo"):
        files.upload(tmp_path / "in", f"{workspace}/tree")
    assert [entry.name for entry in files.list(workspace) if "tree" in entry.name] == []
    assert sandbox.run(["sh", "-c", "mkdir out; mkfifo out/fifo"]).exit_code == 0
    with pytest.raises(AgentdError, match="out/fifo is a fifo"):
        files.download(f"{workspace}/out", tmp_path / "back")
    assert os.listdir(tmp_path) == ["in"]


def test_folders_that_are_closed_to_writing_are_copied_and_replaced(
    files: Files, workspace: str, tmp_path: Path
) -> None:
    """As those of Go's modules and of Nix: who may not write in a directory may not move it."""
    tree = tmp_path / "mod"
    for folder in (tree, tree / "pkg"):
        folder.mkdir()
        (folder / "file").write_text("one")
    for folder in (tree / "pkg", tree):
        folder.chmod(0o555)
    try:
        for replace in (False, True, True):
            files.upload(tree, f"{workspace}/mod", replace=replace)
            files.download(f"{workspace}/mod", tmp_path / "out", replace=replace)
            (tmp_path / "out").chmod(0o555)
        assert not [each for each in files.list(workspace) if each.name.endswith(".agentd")]
        for inside in (f"{workspace}/mod", f"{workspace}/mod/pkg"):
            # An ordinary user's wall of Landlock lets nobody change a mode.
            assert files.stat(inside).mode & 0o777 in (0o555, 0o755)
        assert files.read(f"{workspace}/mod/pkg/file") == b"one"
        assert sorted(os.listdir(tmp_path)) == ["mod", "out"]
        assert (tmp_path / "out" / "pkg" / "file").read_text() == "one"
    finally:
        for folder in (tree, tree / "pkg", tmp_path / "out"):
            if folder.exists():
                folder.chmod(0o755)
