from base64 import b64decode
from typing import Any

import pytest

from agentd.model.capability import CallFailed

NAME = "fs.read.v1"


def whole(box: Any, path: str, step: int, encoding: str) -> tuple[bytes, int]:
    """A file in parts, each from where the last one ended; and how many parts."""
    data, parts = b"", 0
    while True:
        value = box.call(NAME, path=path, offset=len(data), max_bytes=step, encoding=encoding)
        content = value["content"]
        piece = b64decode(content) if value["encoding"] == "base64" else content.encode()
        assert value["length"] == len(piece) and value["truncated"] is not value["eof"]
        data, parts = data + piece, parts + 1
        if value["eof"]:
            return data, parts


@pytest.mark.parametrize("encoding", ["auto", "base64"])
@pytest.mark.parametrize("step", [1, 2, 3, 5, 1000])
def test_a_file_in_parts_is_whole(box: Any, step: int, encoding: str) -> None:
    text = "a\u00e9\u20ac\U0001f600 end\n".encode()
    box.put("f", text)
    assert whole(box, "f", step, encoding)[0] == text


def test_no_part_ends_within_a_character(box: Any) -> None:
    box.put("f", "\u20ac" * 10)
    value = box.call(NAME, path="f", max_bytes=10, encoding="utf-8")
    assert (value["content"], value["length"], value["eof"]) == ("\u20ac" * 3, 9, False)


def test_auto_tells_text_from_bytes(box: Any) -> None:
    box.put("bytes", b"\x7fELF\0\xff")
    value = box.call(NAME, path="bytes")
    assert value["encoding"] == "base64" and b64decode(value["content"]) == b"\x7fELF\0\xff"
    with pytest.raises(CallFailed) as caught:
        box.call(NAME, path="bytes", encoding="utf-8")
    assert caught.value.code == "not_text"


def test_sizes_and_ends(box: Any) -> None:
    box.put("f", "0123456789")
    for offset, most, content, eof in (
        (0, 10, "0123456789", True),
        (0, 9, "012345678", False),
        (10, 5, "", True),
        (99, 5, "", True),
        (9, 1, "9", True),
    ):
        value = box.call(NAME, path="f", offset=offset, max_bytes=most)
        assert (value["content"], value["eof"], value["size"]) == (content, eof, 10)


def test_the_size_is_of_what_a_link_leads_to(box: Any) -> None:
    box.put("d/f", "0123456789")
    box.sh("ln -s d/f one; ln -s ../one d/two")
    for path in ("one", "d/two"):
        assert box.call(NAME, path=path, max_bytes=3)["size"] == 10


@pytest.mark.parametrize("backend", ["host", "linux"], indirect=True)  # landlock lets none through
def test_a_file_of_proc_has_no_size_and_is_read(box: Any) -> None:
    value = box.call(NAME, path="/proc/self/status")
    assert value["content"].startswith("Name:") and value["size"] == value["length"] > 0


def test_the_largest_part(box: Any) -> None:
    box.sh("head -c 17000000 /dev/urandom > f")
    value = box.call(NAME, path="f", max_bytes=16 << 20)
    assert value["length"] == 16 << 20 and value["size"] == 17_000_000 and value["truncated"]


def test_text_of_control_codes_fits_too(box: Any) -> None:
    box.put("f", b"\x01" * (16 << 20))
    assert box.call(NAME, path="f", max_bytes=16 << 20)["encoding"] == "base64"
    with pytest.raises(CallFailed) as caught:
        box.call(NAME, path="f", max_bytes=16 << 20, encoding="utf-8")
    assert caught.value.code == "too_large"
