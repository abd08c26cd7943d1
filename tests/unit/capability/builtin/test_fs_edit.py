from typing import Any

import pytest

from agentd.capability.builtin.fs_edit import MAX_DIFF
from agentd.model.capability import CallFailed
from agentd.model.errors import InvalidInput

NAME = "fs.edit.v1"
HOST = pytest.mark.parametrize("backend", ["host"], indirect=True)


def edit(search: str, replace: str, count: int = 1) -> dict[str, Any]:
    return {"search": search, "replace": replace, "count": count}


def refused(box: Any, *edits: dict[str, Any], path: str = "f") -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        box.call(NAME, path=path, edits=list(edits))
    return caught.value


def test_each_is_looked_for_in_the_file_as_it_was(box: Any) -> None:
    box.put("f", "a b c\n")
    value = box.call(NAME, path="f", edits=[edit("a", "b"), edit("b", "c"), edit("c", "a")])
    assert box.get("f") == b"b c a\n"
    assert value == {
        "replacements": [1, 1, 1],
        "size": 6,
        "diff": "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a b c\n+b c a\n",
        "diff_truncated": False,
    }


def test_all_or_none(box: Any) -> None:
    box.put("f", "a b\n")
    assert refused(box, edit("a", "x"), edit("z", "x")).code == "no_match"
    assert refused(box, edit("a", "x"), edit("b", "x", 2)).code == "wrong_count"
    assert refused(box, edit("a b", "x"), edit("b", "y")).code == "overlap"
    assert box.get("f") == b"a b\n"
    assert [e["path"] for e in box.call("fs.list.v1")["entries"]] == ["f"]


@HOST
def test_edits_that_touch_do_not_overlap(box: Any) -> None:
    box.put("f", "ab")
    box.call(NAME, path="f", edits=[edit("b", "2"), edit("a", "1")])
    assert box.get("f") == b"12"


@HOST
def test_a_count_is_of_places_that_do_not_overlap(box: Any) -> None:
    box.put("f", "aaaa")
    assert refused(box, edit("aa", "b", 3)).code == "wrong_count"
    assert box.call(NAME, path="f", edits=[edit("aa", "b", 2)])["replacements"] == [2]
    assert box.get("f") == b"bb"


@HOST
def test_a_refusal_says_how_often_it_is_there_and_what_ends_the_lines(box: Any) -> None:
    box.put("f", "x x x\r\ny\r\n")
    assert "3 times, not 1" in refused(box, edit("x", "y")).message
    assert "CR LF" in refused(box, edit("x\ny", "z")).message


def test_newlines_of_any_kind_and_the_mode_stay(box: Any) -> None:
    box.put("f", "a\r\nb\x85\u2028c\rd")
    box.sh("chmod 751 f")
    box.call(NAME, path="f", edits=[edit("d", "e")])
    assert box.get("f") == "a\r\nb\x85\u2028c\re".encode()
    assert box.sh("stat -c %a f").text == "751\n"


def test_a_link_stays_one(box: Any) -> None:
    box.put("d/f", "a")
    box.sh("ln -s d/f link")
    box.call(NAME, path="link", edits=[edit("a", "b")])
    assert box.get("d/f") == b"b" and box.sh("readlink link").text == "d/f\n"


@HOST
@pytest.mark.parametrize("data", [b"a\0b", b"a\xffb", b"\x7fELF\0"])
def test_a_binary_file_is_refused(box: Any, data: bytes) -> None:
    box.put("f", data)
    assert refused(box, edit("a", "b")).code == "not_text"
    assert box.get("f") == data


@HOST
def test_a_large_file_is_refused_before_and_after(box: Any) -> None:
    box.put("f", b"a" + b"x" * (16 << 20))
    assert refused(box, edit("a", "b")).code == "too_large"
    box.put("f", "a" * 10_000)
    # 10 GB, were it built.
    assert refused(box, edit("a", "y" * 1_000_000, 10_000)).code == "too_large"
    box.put("f", "ab" + "x" * (14 << 20))
    # Fewer characters than it may have, and more bytes.
    assert refused(box, edit("a", "\u20ac" * (1 << 20))).code == "too_large"


@HOST
def test_too_many_places_in_all(box: Any) -> None:
    box.put("f", "a" * 10_000 + "b")
    assert refused(box, edit("a", "x", 10_000), edit("b", "x")).code == "too_many"


@HOST
def test_a_large_diff_is_cut_and_says_so(box: Any) -> None:
    box.put("f", "a\n" * 10_000)
    value = box.call(NAME, path="f", edits=[edit("a\n", "b" * 50 + "\n", 10_000)])
    assert value["diff_truncated"] and len(value["diff"]) == MAX_DIFF
    assert box.get("f") == (b"b" * 50 + b"\n") * 10_000


@HOST
def test_an_empty_search_and_no_edits_are_refused(box: Any) -> None:
    for edits in ([], [{"search": "", "replace": "x"}], [{"search": "a"}]):
        with pytest.raises(InvalidInput, match="parameter edits"):
            box.call(NAME, path="f", edits=edits)
