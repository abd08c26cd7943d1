from typing import Any

import pytest

NAME = "fs.list.v1"


def paths(value: dict[str, Any]) -> list[str]:
    return [entry["path"] for entry in value["entries"]]


def test_level_by_level_in_order(box: Any) -> None:
    box.sh("mkdir -p b/c/d; touch z a b/y b/c/x; ln -s b link")
    assert paths(box.call(NAME)) == ["a", "b", "link", "z"]
    assert paths(box.call(NAME, depth=2)) == ["a", "b", "link", "z", "b/c", "b/y"]
    assert paths(box.call(NAME, depth=8))[-2:] == ["b/c/x", "b/c/d"][::-1]
    assert paths(box.call(NAME, path="b/c")) == ["d", "x"]


def test_what_an_entry_says(box: Any) -> None:
    box.sh("printf abc > f; chmod 640 f; ln -s f l; mkfifo p")
    found = {entry["path"]: entry for entry in box.call(NAME)["entries"]}
    assert (found["f"]["type"], found["f"]["size"], found["f"]["mode"]) == ("file", 3, "0640")
    assert (found["l"]["type"], found["l"]["target"]) == ("link", "f")
    assert found["p"]["type"] == "fifo" and "target" not in found["p"]


def test_the_limit_leaves_out_what_is_deepest(box: Any) -> None:
    box.sh("mkdir d; touch d/1 d/2 e f")
    value = box.call(NAME, depth=3, limit=4)
    assert paths(value) == ["d", "e", "f", "d/1"] and value["truncated"]
    assert not box.call(NAME, depth=3, limit=5)["truncated"]


def test_links_to_directories_are_not_gone_into(box: Any) -> None:
    box.sh("ln -s . loop; ln -s / root")
    assert paths(box.call(NAME, depth=8)) == ["loop", "root"]


@pytest.mark.parametrize("backend", ["linux"], indirect=True)
def test_a_closed_directory_further_down_is_marked(make_box: Any) -> None:
    box = make_box(user="sandbox")
    box.sh("mkdir -p d/closed; chmod 0 d/closed; touch d/f")
    value = box.call(NAME, depth=3)
    assert [(e["path"], e.get("error")) for e in value["entries"]] == [
        ("d", None), ("d/closed", "forbidden"), ("d/f", None)
    ]  # fmt: skip


def test_names_that_are_no_text(box: Any) -> None:
    box.sh(
        "mkdir \"$(printf 'a\\377b')\"; (cd a* && touch plain); touch \"$(printf 'new\\nline')\""
    )
    assert paths(box.call(NAME, depth=3)) == ["a\ufffdb", "new\nline", "a\ufffdb/plain"]


@pytest.mark.parametrize("backend", ["linux"], indirect=True)
def test_of_two_that_look_alike_the_closed_one_is_marked(make_box: Any) -> None:
    """Names that are no UTF-8, each shown with U+FFFD."""
    box = make_box(user="sandbox")
    box.sh("a=$(printf '\\376') b=$(printf '\\377'); mkdir $a $b; touch $b/f; chmod 0 $a")
    value = box.call(NAME, depth=2)
    assert [(e["path"], e.get("error")) for e in value["entries"]] == [
        ("\ufffd", "forbidden"), ("\ufffd", None), ("\ufffd/f", None)
    ]  # fmt: skip
