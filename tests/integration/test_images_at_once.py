"""Images that are made, replaced and removed, and looked at by others meanwhile: by the command
line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.oci import Images

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(300)]
_AGAIN = """
import json, sys
from agentd.client.cli.main import main
for number in range(int(sys.argv[1])):
    for words in json.loads(sys.argv[2]):
        assert main(["image", *words]) == 0, words
"""


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Beside it two folders that images are built of, and what is built of them differs."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "Dockerfile").write_text(f"FROM scratch\nCOPY Dockerfile /{name}\n")
    return Images(tmp_path)


@contextmanager
def meanwhile(images: Images, times: int, *words: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """Another process that does this over and over, and fails where any of it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", _AGAIN, str(times), json.dumps(words)],
        env=images.env,
        cwd=images.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_who_cleans_up_is_in_nobodys_way(images: Images) -> None:
    """Whose folder goes just now is no failure of who removes what the killed have left."""
    with meanwhile(images, 60, ["build", "-t", "mine", "one"]) as process:
        while process.poll() is None:
            images.run("prune")
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.returncode == 0, said[-1000:]
    assert images.left() == []
    assert images.told("verify") == [{"name": "mine", "state": "ready"}]


def test_what_is_replaced_meanwhile_is_not_damaged(images: Images) -> None:
    images.run("build", "-t", "mine", "one")
    replaced = [["build", "-t", "mine", name] for name in ("other", "one")]
    target = f"oci:{images.folder}/layout"
    with meanwhile(images, 30, *replaced) as process:
        while process.poll() is None:
            assert [(row["name"], row["state"]) for row in images.told("ls")] == [("mine", "ready")]
            assert images.told("verify", "mine") == [{"name": "mine", "state": "ready"}]
            images.run("inspect", "mine", "--verify")
            images.run("push", "mine", target)
        assert process.returncode == 0


def test_what_is_removed_meanwhile_is_not_listed(images: Images) -> None:
    images.run("build", "-t", "stays", "one")
    gone = [["build", "-t", "goes", "other"], ["rm", "goes"]]
    with meanwhile(images, 30, *gone) as process:
        while process.poll() is None:
            for action in ("ls", "verify"):
                states = {row["name"]: row["state"] for row in images.told(action)}
                assert states["stays"] == "ready" and set(states.values()) == {"ready"}
        assert process.returncode == 0


@pytest.mark.parametrize("target", ["oci:layout", "oci-archive:a.tar", "docker://127.0.0.1:1/a:1"])
def test_a_push_of_a_damaged_image_blames_the_image(target: str, images: Images) -> None:
    images.run("build", "-t", "mine", "one")
    (blob,) = images.told("inspect", "mine")["layers"]
    kept = images.cache / "agentd/oci/blobs/sha256"
    os.unlink(kept / blob["digest"].removeprefix("sha256:"))
    said = images.run("push", "mine", target, code=125).stderr
    assert f"the image 'mine' is damaged: the blob {blob['digest']} is gone" in said
    assert "(pull or build it again, as mine)" in said
    assert images.left() == [] and not (images.folder / "a.tar").exists()


def test_a_file_among_the_names_that_is_no_images_is_none(images: Images) -> None:
    images.run("build", "-t", "mine", "one")
    names = images.cache / "agentd/oci/names"
    (file,) = names.iterdir()
    (names / "a:b.json").write_bytes(file.read_bytes())
    assert [(row["name"], row["state"]) for row in images.told("ls")] == [("mine", "ready")]
    assert images.told("verify") == [{"name": "mine", "state": "ready"}]
    images.run("inspect", "a:b", code=125)
