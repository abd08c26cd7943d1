"""``agentd image push``, by the command line: into layouts, archives and a registry, and back."""

import contextlib
import json
import os
import subprocess
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_oci_registry import Start, start
from tests.oci import Images, Layout, busybox

from agentd.image.oci.values import REF_NAME
from agentd.linux import locks

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]
__all__ = ["start"]  # a fixture


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    made = Images(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    layout = Layout(tmp_path / "layout")
    made.run("pull", layout.add([busybox()], {"Env": ["A=b"]}, packed="zstd"), "--name", "base")
    (tmp_path / "context").mkdir()
    (tmp_path / "context/Dockerfile").write_text("FROM base\nCOPY Dockerfile /x\nUSER 5\n")
    made.run("build", "-t", "mine", "context")
    return made


def inspected(*words: str) -> Any:
    done = subprocess.run(["skopeo", "inspect", *words], capture_output=True, check=True)
    return json.loads(done.stdout)


def test_a_layout_gets_images_by_tag_that_others_read(images: Images) -> None:
    told = images.told("push", "mine", "oci:./out:one")
    assert told["pushed"] == "oci:./out:one"
    images.run("push", "base", "oci:./out:two")
    digest = images.run("push", "mine", "oci:./out:one").stdout.split()[1]
    assert digest == told["digest"]
    out = images.folder / "out"
    assert inspected(f"oci:{out}:one")["Digest"] == digest
    config = inspected("--config", f"oci:{out}:one")
    assert config["config"]["User"] == "5" and config["config"]["Env"] == ["A=b"]
    shown = [(entry["created_by"], entry.get("empty_layer")) for entry in config["history"]]
    assert shown == [("COPY Dockerfile /x", None), ("USER 5", True)]
    listed = subprocess.run(["umoci", "ls", "--layout", str(out)], capture_output=True, check=True)
    assert sorted(listed.stdout.split()) == [b"one", b"two"]
    images.run("build", "-t", "mine", "--no-cache", "context")
    images.run("pull", "oci:./out:one", "--name", "back")
    assert images.told("inspect", "back")["digest"] == digest
    assert images.left() == [] and not [n for n in os.listdir(out) if n.startswith(".")]


def test_an_archive_is_replaced_whole(images: Images) -> None:
    archive = images.folder / "mine.tar"
    archive.touch()  # as mktemp makes it
    digest = images.told("push", "mine", "oci-archive:mine.tar:v1")["digest"]
    assert inspected(f"oci-archive:{archive}:v1")["Digest"] == digest
    first = archive.read_bytes()
    images.run("push", "mine", "oci-archive:mine.tar:v1")
    assert archive.read_bytes() == first
    images.run("pull", "oci-archive:mine.tar:v1", "--name", "back")
    assert images.told("inspect", "back")["digest"] == digest


def test_of_a_push_that_is_killed_nothing_is_left_half(images: Images) -> None:
    (images.folder / "large").mkdir()
    (images.folder / "large/file").write_bytes(os.urandom(64 << 20))
    images.run("pull", "dir:./large", "--name", "large")
    place = images.folder / "out"
    place.mkdir()

    def written(pid: int) -> bool:
        """Whether it has a file there, with something in it."""
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it was closed
                if os.readlink(fd).startswith(f"{place}/") and fd.stat().st_size > 1 << 20:
                    return True
        return False

    def left() -> list[str]:
        """What is no whole blob, nor says that others are a layout's."""
        found = [p for p in place.rglob("*") if p.is_file() and p.name != "oci-layout"]
        return [str(p) for p in found if sha256(p.read_bytes()).hexdigest() != p.name]

    for target in (f"oci-archive:{place}/large.tar", f"oci:{place}/layout:x"):
        before = left()
        process = images.start("push", "large", target)
        while not written(process.pid):
            assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        assert left() == before
        images.run("push", "large", target)
    assert inspected(f"oci:{place}/layout:x")


def test_two_that_push_to_one_layout_keep_each_others_tags(images: Images) -> None:
    """While one has read the index, and has not written it yet, the other waits."""
    images.run("push", "mine", "oci:./out:one")
    out, index = images.folder / "out", images.folder / "out/index.json"
    with locks.HeldLock(locks.take_folder(str(out))):
        process = images.start("push", "base", "oci:./out:two")
        (entry,) = json.loads(index.read_bytes())["manifests"]
        digest = images.told("inspect", "base")["digest"].removeprefix("sha256:")
        while not (out / "blobs/sha256" / digest).exists():
            assert process.poll() is None, process.communicate()
        time.sleep(0.2)  # for one that does not wait
        third = entry | {"annotations": {REF_NAME: "three"}}
        odd = entry | {"annotations": ["of", "another", "kind"]}
        index.write_text(json.dumps({"schemaVersion": 2, "manifests": [entry, third, odd]}))
    told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    found = json.loads(index.read_bytes())["manifests"]
    assert len(found) == 4 and odd in found
    tags = {e["annotations"][REF_NAME] for e in found if isinstance(e["annotations"], dict)}
    assert tags == {"one", "two", "three"}


@pytest.mark.needs("docker-registry")
def test_a_registry_gets_it_with_the_credentials_that_a_pull_has(
    images: Images, start: Start
) -> None:
    place = start("secret")
    target = f"docker://{place}/me/mine:1"
    done = images.run("push", "mine", target, "--insecure", code=125)
    assert f"{place} does not let us push {target}" in done.stderr
    assert "agentd image push --insecure" in images.run("push", "mine", target, code=125).stderr
    (images.folder / ".docker").mkdir()
    auths = {"auths": {place: {"auth": "bWU6c2VjcmV0"}}}  # me:secret
    (images.folder / ".docker/config.json").write_text(json.dumps(auths))
    digest = images.told("push", "mine", target, "--insecure")["digest"]
    images.run("rm", "mine")
    text = f"FROM {place}/me/mine:1 AS a\nFROM scratch\nCOPY --from=a /x /y\n"
    (images.folder / "context/Dockerfile").write_text(text)
    refused = images.run("build", "-t", "of", "context", code=125).stderr
    assert f"Dockerfile:1: FROM {place}/me/mine:1: " in refused
    images.run("build", "-t", "of", "--insecure", "context")
    assert images.told("inspect", f"{place}/me/mine:1")["digest"] == digest


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["mine", "dir:./x"], 2, "use one of: oci:./layout:tag, oci-archive:"),
        (["mine", "docker-archive:x"], 2, "is no place to push to"),
        (["mine", f"docker://h/x@sha256:{'0' * 64}"], 2, "is no place to push to"),
        (["mine", "docker://localhost:99999/x:1"], 2, "has the port '99999' (give a number from"),
        (["mine", "docker://h/X:1"], 2, "with NAME in lower case"),
        (["mine", "x"], 2, "is no place to push to"),
        (["nosuch", "oci:./x:y"], 125, "no image 'nosuch'"),
        (["mine", "oci:./context:x"], 2, "is no OCI layout, and not empty"),
        (["mine", "oci:./context/Dockerfile:x"], 125, "cannot be written: "),
        (["mine", "oci-archive:./context"], 2, "is a directory"),
        (["mine", "oci-archive:./context/Dockerfile"], 2, "exists, and is no archive of an image"),
        (["mine", "oci-archive:/dev/null"], 2, "exists, and is no archive of an image"),
        (["mine", "oci-archive:./nosuch/x"], 125, "cannot be written: No such file"),
    ],
)
def test_what_cannot_be_pushed_is_told_and_leaves_nothing(
    words: list[str], code: int, said: str, images: Images
) -> None:
    before = sorted(os.listdir(images.folder))
    done = images.run("push", *words, code=code)
    assert said in done.stderr and not done.stdout
    assert sorted(os.listdir(images.folder)) == before and images.left() == []
    assert (images.folder / "context/Dockerfile").read_text().startswith("FROM")


def test_a_damaged_image_is_not_pushed(images: Images) -> None:
    (_, last) = images.told("inspect", "mine")["layers"]
    blob = images.cache / "agentd/oci/blobs/sha256" / last["digest"].removeprefix("sha256:")
    os.chmod(blob, 0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    for target in ("oci:./out:x", "oci-archive:./out.tar"):
        done = images.run("push", "mine", target, code=125)
        assert "the image 'mine' is damaged" in done.stderr
    assert not (images.folder / "out/index.json").exists()
    assert not (images.folder / "out.tar").exists()
