"""What ``agentd image pull`` is told to take: one of several images, and how large it may be."""

import subprocess
from pathlib import Path

import pytest
from tests.oci import Images, Layout, file, folder, layer

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]
FILES = [folder("a"), folder("a/b"), folder("a/b/c"), file("a/b/c/d", b"d"), file("e")]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
def test_an_archive_is_named_with_its_image(
    transport: str, images: Images, layout: Layout, tmp_path: Path
) -> None:
    """The name in it has slashes and colons of its own: localhost/me/tool:1 as podman has it."""
    archive = f"{transport}:{tmp_path}/x.tar:localhost/me/tool:1"
    source = layout.add([layer(*FILES)])
    copy = ["skopeo", "--insecure-policy", "copy", source, archive]
    subprocess.run(copy, check=True, capture_output=True, timeout=60)
    images.run("pull", archive, "--name", "mine")
    assert (images.root("mine") / "a/b/c/d").read_text() == "d"
    images.run("pull", archive)
    assert images.root("x:localhost/me/tool:1") == images.root("mine")
    other = archive.replace("tool", "other")
    assert "other:1" in images.run("pull", other, "--name", "no", code=125).stderr


def test_a_layouts_tag_may_have_a_slash(images: Images, layout: Layout) -> None:
    layout.add([layer(file("other"))], tag="one")
    images.run("pull", layout.add([layer(*FILES)], tag="me/tool:1"), "--name", "mine")
    assert (images.root("mine") / "e").exists()
    said = images.run("pull", f"oci:{layout.path}", code=125).stderr
    assert f"{layout.path} has several images" in said and "by its tag" in said


def test_a_place_in_a_folder_with_a_colon_is_in_that_folder(images: Images, layout: Layout) -> None:
    """Not in the folder of the shorter name, under a tag of the rest."""
    images.run("pull", layout.add([layer(*FILES)]), "--name", "mine")
    for name in ("x", "x:1"):
        (images.folder / name).mkdir()
    images.run("push", "mine", "oci:./x:1/new:tag")
    assert (images.folder / "x:1/new/index.json").exists()
    assert not list((images.folder / "x").iterdir())
    images.run("pull", "oci:./x:1/new:tag", "--name", "again")
    assert "x:1/none does not exist" in images.run("pull", "oci:./x:1/none:tag", code=2).stderr


def test_as_many_files_as_are_allowed_are_unpacked(images: Images, layout: Layout) -> None:
    source = layout.add([layer(*FILES)])
    said = images.run("pull", source, "--name", "x", "--max-files", "4", code=125).stderr
    assert "has more than 4 files" in said
    images.run("pull", source, "--name", "x", "--max-files", "5")
