"""What another distribution or another suite of Debian lacks is said by its name: apt is played."""

import hashlib
import platform
import struct
import zlib
from pathlib import Path

import pytest

from agentd.client.cli.main import main
from agentd.image import packages
from agentd.image.debian import Debian, _tidy, _Userland
from agentd.image.merged import is_merged, merge
from agentd.model.errors import Unavailable

_DEB = b"archive"
_KERNEL = "linux-image-6.1.0-1-cloud-amd64"
_DEPENDS = {
    "linux-image-cloud-amd64": _KERNEL,
    "busybox-static": "",
    "python3-minimal": "python3.11-minimal",
    "python3.11-minimal": "",
    "libpython3.11-minimal": "",
    "libpython3.11-stdlib": "",
    "bash": "",
    "ca-certificates": "",
    _KERNEL: "",
}


class Apt:
    """Its index, and what each package unpacks to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.trees = folder / "trees"
        for name in ("bin", "index", "trees"):
            (folder / name).mkdir()
        for name, depends in _DEPENDS.items():
            self.add(name, depends)
        self._program("apt-config", '[ "$2" != --format ] || echo pkgcache.bin')
        self._program("apt-cache", f'shift 2; cd {folder}/index; cat "$@" 2>/dev/null')
        self._program(
            "apt-get", 'shift; for each; do printf archive >"${each%%=*}_1_amd64.deb"; done'
        )
        self._program("dpkg-deb", f'name=$(basename "$2"); cp -r {folder}/trees/${{name%%_*}} "$3"')

    def add(self, name: str, depends: str) -> None:
        digest = hashlib.sha256(_DEB).hexdigest()
        text = f"Package: {name}\nVersion: 1\nDepends: {depends}\nSHA256: {digest}\n\n"
        (self._folder / "index" / name).write_text(text)
        (self.trees / name).mkdir()

    def remove(self, name: str) -> None:
        (self._folder / "index" / name).unlink()

    def _program(self, name: str, text: str) -> None:
        (self._folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (self._folder / "bin" / name).chmod(0o755)


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    made = Apt(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def build(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the CLI says last of a build that fails."""
    assert main(["image", "build", *words]) == 125
    return capsys.readouterr().err.splitlines()[-1]


def test_another_distribution_is_named_with_the_ways_out(
    apt: Apt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ubuntu = {"ID": "ubuntu", "PRETTY_NAME": "Ubuntu 24.04.1 LTS"}
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: ubuntu)
    monkeypatch.setattr("agentd.image.apt._KEYRINGS", (__file__,))
    apt.remove("linux-image-cloud-amd64")
    said = build(capsys)
    assert "http://deb.debian.org/debian has no package linux-image-cloud-amd64" in said
    assert "AGENTD_DEBIAN_MIRROR" in said and "build one on a Debian machine" in said
    assert "--kernel and --initramfs" in said and "apt-get update" not in said


def test_what_debians_archive_takes_elsewhere_is_said(
    apt: Apt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "ubuntu"})
    monkeypatch.setattr("agentd.image.apt._KEYRINGS", ("/nowhere",))
    assert "install debian-archive-keyring" in build(capsys)
    for url in ("ftp:x", "http://a b", "http://a [trusted=yes]", "http://a\ndeb http://b c d"):
        monkeypatch.setenv("AGENTD_DEBIAN_MIRROR", url)
        assert main(["image", "build"]) == 2
        assert "is no address of an archive" in capsys.readouterr().err


def test_a_distribution_without_apt_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"PRETTY_NAME": "Fedora 42"})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("agentd.image.apt._KEYRINGS", (__file__,))
    said = build(capsys)
    assert "apt-get is not installed on Fedora 42" in said and "install apt and dpkg" in said
    assert "build one on a Debian machine" in said


def test_on_debian_the_lists_may_be_missing(
    apt: Apt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "debian"})
    apt.remove("linux-image-cloud-amd64")
    assert "linux-image-cloud-amd64 (run apt-get update as root" in build(capsys)


def test_a_kernel_of_ones_own_needs_no_package_of_one(apt: Apt, tmp_path: Path) -> None:
    apt.remove("linux-image-cloud-amd64")
    found = Debian("debian", str(tmp_path / "packages"), own_kernel=True).packages()
    assert "python3.11-minimal" in found and not [n for n in found if n.startswith("linux-")]


def test_a_file_that_a_package_lacks_is_named(apt: Apt, capsys: pytest.CaptureFixture[str]) -> None:
    said = build(capsys)
    assert f"the package {_KERNEL} 1 has no /boot/vmlinuz-6.1.0-1-cloud-amd64" in said
    assert "internal error" not in said


def test_a_kernel_of_which_an_older_agentd_kept_too_little_is_unpacked_again(
    apt: Apt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = packages.require([_KERNEL])[_KERNEL].folder
    boot = tmp_path / "cache/agentd/images/.packages" / folder / "boot"
    boot.mkdir(parents=True)
    (boot / "vmlinuz-6.1.0-1-cloud-amd64").write_bytes(b"older")
    # What apt has now lacks another file.
    assert "has no /boot/vmlinuz-6.1.0-1-cloud-amd64" in build(capsys)


@pytest.mark.parametrize("size", [5, 0x210, 0x249])
def test_a_kernel_that_is_cut_off_is_named(
    apt: Apt, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    boot = apt.trees / _KERNEL / "boot"
    boot.mkdir()
    image = bytes(0x202) + b"HdrS" + bytes(0x100)
    (boot / "vmlinuz-6.1.0-1-cloud-amd64").write_bytes(image[:size])
    said = build(capsys)
    assert f"{_KERNEL} 1: /boot/vmlinuz-6.1.0-1-cloud-amd64: the " in said
    assert "internal error" not in said


def test_a_kernel_that_cannot_be_unpacked_is_named(
    apt: Apt, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = bytearray(3 * 512)
    setup[0x1F1] = 2
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x20E, 0x100)
    setup[0x300:0x310] = b"6.1.0-test (a) \0"
    payload = b"NEW!" + zlib.compress(b"kernel") + struct.pack("<I", 6)
    struct.pack_into("<II", setup, 0x248, 0, len(payload))
    boot = apt.trees / _KERNEL / "boot"
    boot.mkdir()
    (boot / "vmlinuz-6.1.0-1-cloud-amd64").write_bytes(bytes(setup) + payload)
    said = build(capsys)
    assert f"{_KERNEL} 1: /boot/vmlinuz-6.1.0-1-cloud-amd64: the bzImage is" in said


def test_what_lies_in_bin_and_lib_is_found_below_usr(apt: Apt, tmp_path: Path) -> None:
    tree = apt.trees / "bash"
    for path in ("bin/bash", "lib/x86/one.so", "usr/lib/x86/two.so"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(path)
    (tree / "lib/x86/one").symlink_to("one.so")
    found = packages.require(["bash"])
    cache = tmp_path / "packages"
    # As an older agentd has left it.
    (cache / found["bash"].folder / "bin").mkdir(parents=True)
    folder = Path(packages.unpack(found.values(), str(cache), lambda _: True, print)["bash"])
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "usr/lib/x86/one.so",
        "usr/lib/x86/two.so",
    ]
    assert (folder / "usr/bin/bash").read_text() == "bin/bash"
    assert (folder / "usr/lib/x86/one").read_text() == "lib/x86/one.so"
    assert is_merged(str(folder)) and not is_merged(str(tree))
    merge(str(folder))
    assert (folder / "usr/bin/bash").exists()


def test_other_errors_of_the_packages_are_not_internal(
    apt: Apt, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (apt.trees / _KERNEL / "boot/vmlinuz-6.1.0-1-cloud-amd64").mkdir(parents=True)
    (apt.trees / _KERNEL / "boot/vmlinuz-6.1.0-1-cloud-amd64/x").touch()
    said = build(capsys)
    assert "cannot read /boot/vmlinuz-6.1.0-1-cloud-amd64 of the package" in said
    assert "Is a directory" in said


def test_the_tree_of_a_killed_build_goes_with_the_next(tmp_path: Path) -> None:
    """It may have a hundred megabytes, and /tmp may be memory: it lies where the next tidies up."""
    cache = tmp_path / "packages"
    cache.mkdir()
    with _Userland(str(cache), {}, {}, "3.11", "debian")._merged() as tree:
        assert Path(tree).parent == cache
        _tidy(str(cache), set())
        assert not Path(tree).exists()


def test_a_package_that_is_not_there_any_more(apt: Apt) -> None:
    apt.remove("bash")
    with pytest.raises(Unavailable, match="no package bash"):
        Debian("debian", "/nonexistent").packages()
