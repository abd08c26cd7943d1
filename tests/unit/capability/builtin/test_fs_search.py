import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agentd.capability import script
from agentd.capability.inside import search
from agentd.model.capability import CallFailed

NAME = "fs.search.v1"
HOST = pytest.mark.parametrize("backend", ["host"], indirect=True)


def places(value: dict[str, Any]) -> list[tuple[str, int]]:
    return [(match["path"], match["line"]) for match in value["matches"]]


def test_a_pattern_that_takes_for_ever_is_ended(box: Any) -> None:
    box.put("f", "a" * 40 + "!\n")
    with pytest.raises(CallFailed) as caught:
        box.call(NAME, pattern="(a+)+$", regex=True, timeout_ms=500)
    assert caught.value.code == "timeout"
    assert box.call(NAME, pattern="a!")["files"] == 1  # the sandbox goes on
    assert "(a+)+" not in box.sh("ps -e -o args= || true").text


@pytest.mark.parametrize("backend", ["linux"], indirect=True)
def test_the_time_that_is_told_is_that_which_was_over(make_box: Any) -> None:
    """The sandbox's own, which was less than the capability's 30 s."""
    box = make_box(timeout=1)
    box.put("f", "a" * 40 + "!\n")
    with pytest.raises(CallFailed) as caught:
        box.call(NAME, pattern="(a+)+$", regex=True)
    assert (caught.value.code, caught.value.message) == (
        "timeout",
        "it ran longer than 1 s and was ended",
    )
    assert "the sandbox's timeout" in caught.value.remediation


def test_in_the_order_of_names_with_what_is_around(box: Any) -> None:
    box.sh("mkdir -p b/c; printf '1\\nhit\\n3\\n4\\n' | tee a b/c/x > b/y; cp a z")
    value = box.call(NAME, pattern="hit", context=1)
    assert places(value) == [("a", 2), ("z", 2), ("b/y", 2), ("b/c/x", 2)]
    assert value["matches"][0]["before"] == ["1"] and value["matches"][0]["after"] == ["3"]
    assert value == {**value, "files": 4, "skipped": 0, "truncated": False}


def test_a_path_begins_with_what_was_asked_for(box: Any) -> None:
    box.put("src/a.py", "hit\n")
    full = f"{box.inside.workspace}/src"
    for path, shown in (
        (".", "src/a.py"), ("./src", "src/a.py"), ("src/a.py", "src/a.py"), (full, f"{full}/a.py")
    ):  # fmt: skip
        assert places(box.call(NAME, pattern="hit", path=path)) == [(shown, 1)]


@HOST
def test_globs(box: Any) -> None:
    for path in ("a.py", "a.pyc", "src/b.py", "src/deep/er/c.py", "src/[x].txt"):
        box.put(path, "hit\n")
    for glob, found in {
        "*.py": {"a.py", "src/b.py", "src/deep/er/c.py"},
        "src/*.py": {"src/b.py"},
        "src/**/*.py": {"src/b.py", "src/deep/er/c.py"},
        "**/*.py": {"a.py", "src/b.py", "src/deep/er/c.py"},
        "?.py": {"a.py", "src/b.py", "src/deep/er/c.py"},
        "[x].txt": {"src/[x].txt"},
        "a.py?": {"a.pyc"},
        "nothing": set(),
    }.items():
        value = box.call(NAME, pattern="hit", glob=glob)
        assert {match["path"] for match in value["matches"]} == found, glob


@HOST
def test_case_and_plain_text(box: Any) -> None:
    box.put("f", "Value.\nvalueX\n")
    assert places(box.call(NAME, pattern="value.")) == []
    assert places(box.call(NAME, pattern="value.", case_sensitive=False)) == [("f", 1)]
    assert places(box.call(NAME, pattern="value.", regex=True)) == [("f", 2)]
    assert places(box.call(NAME, pattern="^$", regex=True)) == []


@HOST
def test_bounds_are_said(box: Any) -> None:
    box.put("f", "hit\n" * 500)
    value = box.call(NAME, pattern="hit", max_matches=10)
    assert len(value["matches"]) == 10 and value["truncated"]
    assert not box.call(NAME, pattern="hit", max_matches=500)["truncated"]


@HOST
def test_a_long_line_is_shown_around_what_matches(box: Any) -> None:
    box.put("f", "x" * 10_000 + "hit" + "y" * 10_000)
    (match,) = box.call(NAME, pattern="hit")["matches"]
    assert match["column"] == 10_001 and "hit" in match["text"] and len(match["text"]) == 500


@HOST
def test_all_text_together_is_bounded(box: Any) -> None:
    box.put("f", ("hit" + "x" * 600 + "\n") * 10_000)
    value = box.call(NAME, pattern="hit", context=10, max_matches=10_000)
    assert value["truncated"] and 100 < len(value["matches"]) < 1000


@HOST
def test_text_that_json_would_escape_is_bounded_all_the_same(box: Any) -> None:
    for name in ("a", "b"):
        box.put(name, ("hit" + "\U0001f600" * 497 + "\n") * 4300)
    value = box.call(NAME, pattern="hit", max_matches=10_000)
    assert value["truncated"] and len(value["matches"]) > 8000
    assert value["matches"][0]["text"] == "hit" + "\U0001f600" * 497


@HOST
def test_what_is_binary_large_or_closed_is_skipped_and_counted(box: Any) -> None:
    box.put("binary", b"hit\0")
    box.put("text", b"hit \xff\n")
    box.sh("head -c 17000000 /dev/zero | tr '\\0' h > large")
    value = box.call(NAME, pattern="hit")
    assert places(value) == [("text", 1)] and value["skipped"] == 2


@HOST
def test_names_that_are_no_text(box: Any) -> None:
    box.sh("printf hit > \"$(printf 'a\\377b')\"")
    assert places(box.call(NAME, pattern="hit")) == [("a\ufffdb", 1)]


@HOST
def test_a_thousand_directories_deep(box: Any) -> None:
    box.sh("d=$PWD; for n in $(seq 1200); do mkdir x && cd x; done; cd $d; echo hit > f")
    assert places(box.call(NAME, pattern="hit")) == [("f", 1)]


@pytest.mark.parametrize("pattern", ["(", "[a", "a{1,99999999999}", "(?P<", "x" * 99 + "**"])
@HOST
def test_patterns_that_are_none(box: Any, pattern: str) -> None:
    box.put("f", "x\n")
    with pytest.raises(CallFailed) as caught:
        box.call(NAME, pattern=pattern, regex=True)
    assert caught.value.code == "bad_pattern"


@HOST
def test_a_pattern_too_deep_for_python(box: Any) -> None:
    with pytest.raises(CallFailed) as caught:
        box.call(NAME, pattern="(" * 4000 + ")" * 4000, regex=True)
    assert caught.value.code == "bad_pattern"


def test_the_script_is_the_sandbox_s_python_s_alone() -> None:
    """It runs without this package, and without a site."""
    answer = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c", script.source("search")],
        input=b'{"root": "/none", "shown": "", "pattern": "x", "regex": false, "glob": "",'
        b' "case_sensitive": true, "max_matches": 1, "context": 0}',
        capture_output=True,
        check=True,
        env={},
    )
    assert b'"not_found"' in answer.stdout


def test_a_fifo_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(search.os, "open", lambda *_: pytest.fail("opened"))
    assert search.content(str(tmp_path / "fifo")) is None


def test_what_is_swapped_in_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    file = os.lstat(tmp_path / "file")
    monkeypatch.setattr(search.os, "lstat", lambda _: file)
    assert search.content(str(tmp_path / "fifo")) is None
    with pytest.raises(OSError, match="symbolic links"):
        search.content(str(tmp_path / "link"))
