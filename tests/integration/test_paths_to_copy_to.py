"""What may be named of this machine to copy to, and what becomes of a file's second name."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd import InvalidInput, Sandbox
from agentd.client import exported
from agentd.image.model import ImageError
from agentd.linux import replacing


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox.create(embedded=True) as sandbox:
        sandbox.run("mkdir out; echo x > out/a; ln out/a out/b", check=True)
        yield sandbox


def test_a_path_that_there_cannot_be_is_an_error_of_ours(box: Sandbox, tmp_path: Path) -> None:
    for source in ("/workspace/out", "/workspace/out/a"):
        for name, why in (("n" * 256, "File name too long"), ("a\0b", "null")):
            with pytest.raises(InvalidInput, match="cannot be written to") as told:
                box.files.download(source, f"{tmp_path}/{name}")
            assert why in told.value.cause and told.value.remediation
    assert not list(tmp_path.iterdir())


@pytest.mark.root
def test_no_copy_takes_the_place_of_a_device(box: Sandbox, tmp_path: Path) -> None:
    """As /dev/null: from then on all programs of the machine would have read and filled a file."""
    device = tmp_path / "null"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    for source in ("/workspace/out", "/workspace/out/a"):
        for replace, why in ((False, "exists already"), (True, "is a device, which nothing")):
            with pytest.raises(InvalidInput, match=why):
                box.files.download(source, device, replace=replace)
    assert device.is_char_device() and os.listdir(tmp_path) == ["null"]


def test_nothing_takes_the_place_of_a_link_among_devices(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /dev/stdout, which all programs of the machine would have missed from then on."""
    monkeypatch.setattr(replacing, "DEVICES", str(tmp_path))
    redirected = tmp_path / "redirected"
    redirected.touch()
    link = tmp_path / "stdout"
    link.symlink_to(redirected)
    for source in ("/workspace/out", "/workspace/out/a"):
        with pytest.raises(InvalidInput, match="is a device, which nothing"):
            box.files.download(source, link, replace=True)
    with pytest.raises(ImageError, match="stdout cannot be written: it is no file"):
        exported.write(iter([b"an image"]), link)
    assert link.is_symlink() and sorted(os.listdir(tmp_path)) == ["redirected", "stdout"]


def test_a_file_of_two_names_becomes_two_as_the_help_says(box: Sandbox, tmp_path: Path) -> None:
    box.files.download("/workspace/out", f"{tmp_path}/out")
    assert [(tmp_path / "out" / name).stat().st_nlink for name in "ab"] == [1, 1]
    assert [(tmp_path / "out" / name).read_text() for name in "ab"] == ["x\n", "x\n"]
    said = subprocess.run(
        [sys.executable, "-m", "agentd", "cp", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "a file with several names becomes one for each" in " ".join(said.split())
