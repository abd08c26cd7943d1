import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.image import cpio
from agentd.image.tree import ImageTree
from agentd.model.errors import InvalidInput

_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)
_PATHS = (
    st.lists(_NAMES.filter(lambda n: n not in (".", "..")), min_size=1, max_size=4)
    .map(lambda parts: "/" + "/".join(parts))
    .filter(lambda path: path != "/TRAILER!!!")
)
_MODES = st.integers(0, 0o7777)


@st.composite
def _trees(draw: st.DrawFn) -> ImageTree:
    tree = ImageTree()
    for path in draw(st.lists(_PATHS, max_size=8, unique=True)):
        match draw(st.sampled_from(("file", "folder", "link", "device"))):
            case "file":
                tree.file(path, draw(st.binary(max_size=40)), draw(_MODES))
            case "folder":
                tree.folder(path, draw(_MODES), draw(st.integers(0, 70000)), 5)
            case "link":
                tree.link(path, draw(_PATHS))
            case _:
                tree.device(path, draw(st.integers(0, 255)), draw(st.integers(0, 255)), 0o600)
    return tree


@given(_trees())
def test_what_was_written_is_read_back(tree: ImageTree) -> None:
    assert dict(cpio.read(cpio.write(tree)).items()) == dict(tree.items())


@given(_trees(), st.data())
def test_a_damaged_archive_is_refused_or_read_but_never_breaks(
    tree: ImageTree, data: st.DataObject
) -> None:
    archive = bytearray(cpio.write(tree))
    archive[data.draw(st.integers(0, len(archive) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        cpio.read(bytes(archive))
    except InvalidInput as error:
        assert "cpio" in str(error)


def test_a_cut_off_archive_is_refused() -> None:
    tree = ImageTree()
    tree.file("/a", b"content")
    archive = cpio.write(tree)
    with pytest.raises(InvalidInput, match="byte 0 is cut off"):
        cpio.read(archive[:115])
    with pytest.raises(InvalidInput, match="no cpio header at byte 0"):
        cpio.read(archive[:50])


def test_later_archives_lie_on_top_of_earlier_ones() -> None:
    first, second = ImageTree(), ImageTree()
    first.file("/a", b"old")
    first.file("/b", b"kept")
    second.file("/a", b"new")
    both = cpio.read(cpio.write(first) + b"\0" * 512 + cpio.write(second))
    assert (both["/a"].data, both["/b"].data) == (b"new", b"kept")


def test_the_order_of_making_does_not_show() -> None:
    one, two = ImageTree(), ImageTree()
    one.file("/x/a", b"1")
    one.link("/x/b", "a")
    two.link("/x/b", "a")
    two.file("/x/a", b"1")
    assert cpio.write(one) == cpio.write(two)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_itself_reads_it(tmp_path: Path) -> None:
    tree = ImageTree()
    tree.file("/folder/file", b"content")
    tree.link("/folder/link", "file")
    archive = cpio.write(tree)
    subprocess.run(["cpio", "-id", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "folder" / "link").read_bytes() == b"content"
