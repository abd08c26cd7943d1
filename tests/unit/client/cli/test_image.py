import json
import os
from pathlib import Path

import pytest

from agentd.client.cli.main import main
from agentd.image import kernel


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["image"], "COMMAND"),
        (["image", "build", "--base", "alpine"], "no base 'alpine'"),
        (["image", "build", "--name", "../x", "--kernel", "/nosuch"], "is no name"),
        (["image", "build", "--name", "x", "--kernel", "/nosuch"], "/nosuch is no plain file"),
        (["image", "build", "--nosuch"], "--nosuch"),
    ],
)
def test_wrong_words_are_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err
