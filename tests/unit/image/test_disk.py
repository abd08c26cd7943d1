import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from agentd.image import disk
from agentd.image.tree import ImageTree

SBIN = "/usr/sbin:/sbin:/usr/bin:/bin"


@pytest.fixture
def tree() -> ImageTree:
    made = ImageTree()
    made.folder("/workspace", 0o755, 1000, 1000)
    made.file("/usr/bin/tool", b"content", 0o755)
    made.link("/bin", "usr/bin")
    made.device("/dev/null", 1, 3, 0o666)
    return made


def test_the_tar_archive_keeps_owners_modes_and_kinds(tree: ImageTree) -> None:
    with tarfile.open(fileobj=BytesIO(disk.tar(tree))) as archive:
        members = {member.name: member for member in archive}
        assert archive.extractfile("./usr/bin/tool").read() == b"content"
    assert members["./workspace"].uid == members["./workspace"].gid == 1000
    assert members["./usr/bin/tool"].mode == 0o755
    assert members["./bin"].linkname == "usr/bin"
    null = members["./dev/null"]
    assert (null.ischr(), null.devmajor, null.devminor) == (True, 1, 3)
    assert {member.mtime for member in members.values()} == {0}


@pytest.mark.parametrize(("make", "tool"), [(disk.ext4, "mke2fs"), (disk.erofs, "mkfs.erofs")])
def test_the_same_tree_gives_the_same_image(
    make, tool: str, tree: ImageTree, tmp_path: Path
) -> None:
    if shutil.which(tool, path=SBIN) is None:
        pytest.skip(f"{tool} is not installed")
    for name in ("one", "two"):
        reason = make(tree, str(tmp_path / name))
        if "takes no tar archive here" in reason:
            pytest.skip(reason)
        assert reason == ""
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_an_ext4_image_is_sound_and_its_files_belong_as_told(
    tree: ImageTree, tmp_path: Path
) -> None:
    for tool in ("mke2fs", "e2fsck", "debugfs"):
        if shutil.which(tool, path=SBIN) is None:
            pytest.skip(f"{tool} is not installed")
    path = str(tmp_path / "image")
    assert disk.ext4(tree, path) == ""
    run = {"env": {"PATH": SBIN}, "capture_output": True, "text": True}
    assert subprocess.run(["e2fsck", "-fn", path], **run, check=False).returncode == 0
    listing = subprocess.run(["debugfs", "-R", "stat /workspace", path], **run, check=True).stdout
    assert "User:  1000   Group:  1000" in listing


def test_an_mke2fs_that_takes_no_tar_archive_gives_the_same_files(
    tree: ImageTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("mke2fs", "e2fsck", "debugfs"):
        if shutil.which(tool, path=SBIN) is None:
            pytest.skip(f"{tool} is not installed")
    (tmp_path / "bin").mkdir()
    old = tmp_path / "bin/mke2fs"  # as Debian 12's, 1.47.0
    old.write_text(
        '#!/bin/sh\ncase " $* " in *" -d "*) echo "Not a directory" >&2; exit 1;; esac\n'
        f'exec {shutil.which("mke2fs", path=SBIN)} "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setattr(disk, "_PATH", f"{tmp_path}/bin:{SBIN}")
    tree.file('/usr/share/a "quoted" name', b"")
    for number in range(300):  # more than a block of names
        tree.file(f"/usr/share/{'many' * 20}{number}", b"%d" % number, 0o640)
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert disk.ext4(tree, one) == disk.ext4(tree, two) == ""
    assert Path(one).read_bytes() == Path(two).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "one", "two"]
    run = {"env": {"PATH": SBIN}, "capture_output": True, "text": True}
    assert subprocess.run(["e2fsck", "-fn", one], check=False, **run).returncode == 0

    def stat(path: str) -> str:
        return subprocess.run(["debugfs", "-R", f"stat {path}", one], check=False, **run).stdout

    assert "User:  1000   Group:  1000" in stat("/workspace")
    assert "Type: regular    Mode:  0755" in stat("/usr/bin/tool")
    assert 'Fast link dest: "usr/bin"' in stat("/bin")
    assert "Type: character special    Mode:  0666" in stat("/dev/null")
    assert "Mode:  0640" in stat(f"/usr/share/{'many' * 20}299")
    content = subprocess.run(["debugfs", "-R", "cat /usr/bin/tool", one], check=False, **run).stdout
    assert content == "content"


@pytest.mark.parametrize("make", [disk.ext4, disk.erofs])
def test_a_missing_or_failing_tool_is_a_reason(
    make, tree: ImageTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_PATH", str(tmp_path / "bin"))
    assert "is not installed (apt-get install" in make(tree, str(tmp_path / "root.image"))
    (tmp_path / "bin").mkdir()
    for tool in ("mke2fs", "mkfs.erofs"):
        (tmp_path / "bin" / tool).write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
        (tmp_path / "bin" / tool).chmod(0o755)
    assert make(tree, str(tmp_path / "root.image")).endswith("failed: broken")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
