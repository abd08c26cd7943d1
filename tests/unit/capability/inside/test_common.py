"""How scripts open paths and fail."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.capability.inside import common


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/file").write_text("x")
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "d/link").symlink_to("e/file")
    os.mkfifo(tmp_path / "pipe")
    yield tmp_path


@pytest.mark.parametrize("path", ["d/e/file", "./d//e/./file"])
def test_a_file_below_the_root(tree: Path, path: str) -> None:
    fd = common.open_file(str(tree), f"{tree}/{path}")
    assert os.read(fd, 9) == b"x"
    os.close(fd)


def test_links_in_the_root_are_followed_and_those_outside_it_are_not(tree: Path) -> None:
    os.close(common.open_file(f"{tree}/link", f"{tree}/link/e/file"))
    with pytest.raises(common.Failed) as caught:
        common.open_file("/elsewhere", f"{tree}/link/e/file")
    assert caught.value.code == "link"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("link/e/file", "link"),
        ("d/link", "link"),
        ("d/link/x", "link"),
        ("d/e/../e/file", "bad_path"),
        ("..", "bad_path"),
        ("", "bad_path"),
        ("d/\0", "bad_path"),
        ("pipe", "not_a_file"),
        ("d", "not_a_file"),
        ("d/e/file/x", "not_found"),
        ("gone", "not_found"),
        ("gone/x", "not_found"),
    ],
)
def test_paths_that_are_refused(tree: Path, path: str, code: str) -> None:
    with pytest.raises(common.Failed) as caught:
        common.open_file(str(tree), f"{tree}/{path}")
    assert caught.value.code == code


def test_a_tree_is_removed_and_links_in_it_are_not_followed(tree: Path) -> None:
    (tree / "d/away").symlink_to("../kept")
    (tree / "kept").mkdir()
    (tree / "kept/file").write_text("x")
    place = os.open(tree, os.O_RDONLY)
    try:
        common.remove_tree(place, "d")
    finally:
        os.close(place)
    assert sorted(os.listdir(tree)) == ["kept", "link", "pipe"]
    assert (tree / "kept/file").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (common.Failed("mine", "a \udc80 name"), "mine"),
        (OSError(28, "No space left"), "disk_full"),
        (OSError(13, "Permission denied"), "io_error"),
        (MemoryError(), "too_large"),
    ],
)
def test_errors_are_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Exception, code: str
) -> None:
    def work(_: dict[str, Any]) -> dict[str, Any]:
        raise error

    answer(monkeypatch, work)
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code


def answer(monkeypatch: pytest.MonkeyPatch, work: Callable[..., Any]) -> None:
    import io
    import sys

    class Stdin:
        buffer = io.BytesIO(b"{}")

    monkeypatch.setattr(sys, "stdin", Stdin())
    common.answer(work)
