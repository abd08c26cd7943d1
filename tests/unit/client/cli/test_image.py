import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.client.cli.main import main
from agentd.client.cli.progress import Display
from agentd.image import build, kernel
from agentd.image.debian import Base
from agentd.image.packages import Package
from agentd.model.errors import InvalidInput
from agentd.sandbox import progress


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "agentd" / "images"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that make an image of one's own files."""
    monkeypatch.setattr(kernel, "release", lambda image: "5.10.9")
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF" + bytes(200))
    (tmp_path / "initramfs").write_bytes(b"070701" + b"0" * 104)
    return [
        *("image", "build", "--name", "mine", "--kernel", str(tmp_path / "vmlinux")),
        *("--initramfs", str(tmp_path / "initramfs")),
    ]


def test_build_says_what_it_built(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(mine) == 0
    out, err = capsys.readouterr()
    assert out.startswith("mine sha256:")
    assert "agentd image: publishing" in err  # no terminal here: lines instead of a bar
    assert "note: the kernel has no PVH entry" in err


def test_build_as_json(mine: list[str], cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*mine, "--json"]) == 0
    image = json.loads(capsys.readouterr().out)
    assert image["kernel"].startswith(str(cache))
    assert image["kernel_release"] == "5.10.9"
    # Without options, what is there is kept, and with --force made again from the same files.
    assert main(["image", "build", "--name", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == image
    assert main(["image", "build", "--name", "mine", "--force", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["digest"] == image["digest"]
    assert again["folder"] != image["folder"]


def test_ls_shows_each_and_its_state(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", "ls"]) == 0
    assert "no images in" in capsys.readouterr().err
    main(mine)
    capsys.readouterr()
    assert main(["image", "ls", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["base"], row["state"]) == ("mine", "own", "ready")
    assert main(["image", "ls"]) == 0
    assert "5.10.9" in capsys.readouterr().out


def test_damage_is_shown_and_verify_fails(
    mine: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(mine)
    assert main(["image", "inspect", "mine", "--verify"]) == 0
    assert "(verified)" in capsys.readouterr().out
    (cache / "mine" / "vmlinux").write_bytes(b"damaged")
    assert main(["image", "inspect", "mine", "--verify"]) == 125
    assert "vmlinux is not what was built" in capsys.readouterr().err
    assert main(["image", "ls", "--json"]) == 0
    assert "damaged" in json.loads(capsys.readouterr().out)[0]["state"]


def test_inspect_as_json_lists_the_files(
    mine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(mine)
    capsys.readouterr()
    assert main(["image", "inspect", "mine", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert files["vmlinux"]["size"] == 204


def test_rm_removes(mine: list[str], cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(mine)
    assert main(["image", "rm", "mine"]) == 0
    assert not os.path.lexists(cache / "mine")
    assert os.listdir(cache / ".builds") == []
    assert main(["image", "rm", "mine"]) == 125
    assert "no image 'mine'" in capsys.readouterr().err


def test_ls_tells_what_the_cache_holds_and_prune_leaves_the_images(
    mine: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(mine)
    main([*mine, "--base", "debian"])  # the first build is kept, in case somebody starts from it
    state = cache.parent / "templates" / f"{'a' * 24}-{'b' * 64}.state"
    for path in (state, cache / ".packages" / "linux.deb"):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(bytes(3_000_000))
    capsys.readouterr()
    assert main(["image", "ls"]) == 0
    out = capsys.readouterr().out
    assert "replaced images" in out and "2.867 MiB packages" in out
    assert "2.867 MiB machines ready to be restored" in out
    assert main(["image", "prune", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed"] > 6_000_000
    assert not state.exists() and len(os.listdir(cache / ".builds")) == 1
    assert main(["image", "inspect", "mine", "--verify"]) == 0


@pytest.mark.parametrize("terminal", [False, True])
def test_an_image_that_a_command_needs_is_announced(
    terminal: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """Before it is built, and so that it is still there to be read afterwards."""
    monkeypatch.setattr(os, "isatty", lambda fd: terminal)
    display = Display()
    with display, pytest.raises(InvalidInput), progress.listening(display):
        build.ensure(progress=progress.report_steps, source=NoPackages())
    said = capfd.readouterr().err
    assert "agentd run: the image default is not built yet: building it from packages, " in said
    assert f"about 260 MB in {cache} (agentd image build does that ahead of time)" in said


class NoPackages:
    def packages(self) -> dict[str, Package]:
        raise InvalidInput("no packages here")

    def make(self, say: Callable[[str], None]) -> Base:
        raise InvalidInput("no packages here")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["image"], "COMMAND"),
        (["image", "build", "--base", "alpine"], "no base 'alpine'"),
        (["image", "build", "--name", "../x", "--kernel", "/nosuch"], "is no name"),
        (["image", "build", "--name", "x", "--kernel", "/nosuch"], "/nosuch is no plain file"),
        (["image", "build", "--nosuch"], "--nosuch"),
        (["image", "build", "-t", "x"], "agentd image build -t NAME . (or say --name NAME"),
        (["image", "build", "-t", "x", "--name", "y", "."], "not allowed with argument"),
        (["image", "build", "-t", "X", "."], "is no name for an image (begin with a lower case"),
        (["guest", "--bundle", "x.zip"], "give a file that ends in .tar, .tar.gz, .tgz, or a new"),
        (["guest", "--bundle", "x.tar.xz"], "is of a kind of archive that is not written"),
    ],
)
def test_wrong_words_are_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_the_machine_image_that_is_not_built_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", "inspect"]) == 125
    assert "agentd image build makes that machine image" in capsys.readouterr().err


@pytest.mark.parametrize("action", [["ls"], ["prune"], ["inspect"], ["build"]])
def test_a_cache_that_cannot_be_reached_is_told_with_the_variable(
    action: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A home that is a file, or another user's as su leaves it: root is stopped by the former."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["image", *action]) == 125
    told = capsys.readouterr().err
    assert f"{tmp_path}/file/agentd/images: Not a directory (set XDG_CACHE_HOME to" in told


def test_doctor_tells_of_a_cache_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    reason = f"cannot look into {tmp_path}/file/agentd/images"
    assert found["machine"]["image"].startswith(f"{reason}: Not a directory (")
    for part in found["parts"]:  # left out where no virtual machine can be had
        if part["name"] == "image":
            assert not part["usable"]
            assert part["blockers"][0]["what"] == f"{reason}: Not a directory"
            assert "XDG_CACHE_HOME" in part["blockers"][0]["fix"]


@pytest.mark.parametrize("option", ["--timeout", "--memory", "--disk"])
def test_a_limit_of_a_build_that_says_nothing_is_no_limit_left_out(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a variable that is not set: the build ran without the limit."""
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    assert main(["image", "build", "-t", "mine", option, "", str(tmp_path)]) == 2
    what = {"--timeout": "a time"}.get(option, "a size")
    assert f"agentd image: {option} '' is not {what}" in capsys.readouterr().err
