from typing import Any

import pytest

from agentd.model.capability import CallFailed
from agentd.model.errors import InvalidInput

NAME = "fs.write.v1"


def test_it_is_whole_and_has_its_mode(box: Any) -> None:
    assert box.call(NAME, path="a", content="h\u00e9", mode="0700") == {"size": 3}
    assert box.sh("cat a; stat -c ' %a' a").text == "h\u00e9 700\n"


def test_it_takes_the_place_of_another(box: Any) -> None:
    box.put("a", "before")
    box.sh("ln a other")
    box.call(NAME, path="a", content="after")
    assert (box.get("a"), box.get("other")) == (b"after", b"before")


def test_a_link_is_replaced_and_what_it_leads_to_stays(box: Any) -> None:
    box.put("target", "stays")
    box.sh("ln -s target link")
    box.call(NAME, path="link", content="new")
    assert (box.get("target"), box.get("link")) == (b"stays", b"new")


def test_what_fails_leaves_nothing_behind(make_box: Any, backend: str) -> None:
    if backend != "linux":
        pytest.skip(f"{backend}: bounds no disk")
    box = make_box(disk="1M")
    with pytest.raises(CallFailed) as caught:
        box.call(NAME, path="big", content="x" * (2 << 20))
    assert caught.value.code == "disk_full"
    assert box.call("fs.list.v1")["entries"] == []


@pytest.mark.parametrize("mode", ["4755", "08", "0888", "rwx", "07777", "-644", "644\n"])
@pytest.mark.parametrize("backend", ["host"], indirect=True)
def test_what_is_no_mode(box: Any, mode: str) -> None:
    with pytest.raises(InvalidInput, match="parameter mode"):
        box.call(NAME, path="a", content="", mode=mode)


@pytest.mark.parametrize("backend", ["host"], indirect=True)
def test_what_is_no_base64(box: Any) -> None:
    with pytest.raises(InvalidInput, match="not base64"):
        box.call(NAME, path="a", content="?", encoding="base64")
    assert box.call("fs.list.v1")["entries"] == []
