"""apt is played by scripts: what it says, and what goes wrong."""

import hashlib
import os
from pathlib import Path

import pytest

from agentd.image import packages
from agentd.image.packages import Package
from agentd.model.errors import Unavailable

_SHOW = """\
#!/bin/sh
cat <<'END'
Package: top
Version: 1.2
Pre-Depends: libone (>= 3)
Depends: libtwo | libother, unrelated
SHA256: aa

Package: libone
Version: 1
Depends: libthree:any
SHA256: bb

Package: libtwo
Version: 2
SHA256: cc

Package: libthree
Version: 3
SHA256: dd
END
"""
_DEB = b"archive"
_DOWNLOAD = "#!/bin/sh\nprintf %s archive > thing_1%3a2_amd64.deb\n"
_EXTRACT = (
    '#!/bin/sh\nmkdir -p "$3/usr/share/doc" "$3/usr/bin"\n'
    'echo hi > "$3/usr/bin/thing"; echo no > "$3/usr/share/doc/text"\n'
)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    scripts = {"apt-cache": _SHOW, "apt-get": _DOWNLOAD, "dpkg-deb": _EXTRACT}
    for name, text in scripts.items():
        _program(folder, name, text)
    return folder


def _program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def _thing() -> Package:
    return Package("thing", "1:2", hashlib.sha256(_DEB).hexdigest())


def _quiet(_: str) -> None:
    pass


def test_dependencies_are_followed_as_far_as_wanted(programs: Path) -> None:
    found = packages.closure(["top"], lambda name: name.startswith("lib"))
    assert found["top"].depends == ("libone", "libtwo", "unrelated")
    assert {"libone", "libtwo", "libthree"} <= set(found)


def test_a_package_that_apt_does_not_know_is_named(programs: Path) -> None:
    with pytest.raises(Unavailable, match=r"no package nosuch \(run apt-get update"):
        packages.require(["top", "nosuch"])


def test_a_package_is_unpacked_once_and_pruned(programs: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    keep = lambda path: "/doc/" not in path  # noqa: E731
    folders = packages.unpack([_thing()], cache, keep, _quiet)
    assert os.listdir(cache) == [_thing().folder]
    assert sorted(os.listdir(f"{folders['thing']}/usr")) == ["bin"]
    _program(programs, "apt-get", "#!/bin/sh\nexit 1\n")
    assert packages.unpack([_thing()], cache, keep, _quiet) == folders


def test_a_package_that_is_not_what_the_index_says_is_refused(
    programs: Path, tmp_path: Path
) -> None:
    _program(programs, "apt-get", _DOWNLOAD.replace("archive", "changed"))
    with pytest.raises(Unavailable, match="thing is not what apt's index says"):
        packages.unpack([_thing()], str(tmp_path / "cache"), lambda _: True, _quiet)
    assert os.listdir(tmp_path / "cache") == []


def test_apts_own_words_are_passed_on(programs: Path, tmp_path: Path) -> None:
    _program(
        programs, "apt-get", "#!/bin/sh\necho 'W: note' >&2\necho 'E: no route' >&2\nexit 100\n"
    )
    with pytest.raises(Unavailable, match="apt-get download thing=1:2 failed: E: no route"):
        packages.unpack([_thing()], str(tmp_path / "cache"), lambda _: True, _quiet)


@pytest.mark.parametrize("keeps", ["", "pkgcache.bin"])
def test_where_apt_keeps_no_index_one_is_kept_for_all_calls(
    programs: Path, tmp_path: Path, keeps: str
) -> None:
    asked = tmp_path / "asked"
    _program(programs, "apt-config", f"#!/bin/sh\necho {keeps}\n")
    _program(programs, "apt-cache", f'#!/bin/sh\necho "$@" >> {asked}\n{_SHOW}')
    cache = tmp_path / "cache"
    with packages.indexed(str(cache)) as index:
        packages.closure(["top"], lambda name: name.startswith("lib"), index)
    options = {line.partition("show ")[0] for line in asked.read_text().splitlines()}
    (kept,) = options
    assert kept == "" if keeps else kept.startswith(f"-o Dir::Cache::pkgcache={cache}/.index-")
    assert keeps or not list(cache.iterdir())


def test_without_apt_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"apt-cache is not installed .*--kernel and --initramfs"):
        packages.show(["top"])


def test_the_stamp_changes_with_apts_lists(tmp_path: Path) -> None:
    assert packages.lists_stamp(str(tmp_path / "none")) == ""
    before = packages.lists_stamp(str(tmp_path))
    (tmp_path / "list").touch()
    assert before != packages.lists_stamp(str(tmp_path)) != ""
