"""An image of what a sandbox is now: by the command line, the SDK and REST."""

import asyncio
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_client_of_a_daemon import Daemon
from tests.oci import Images, Layout, busybox, file, folder

from agentd import AgentdError, AsyncSandbox, Client, Forbidden, Refused, Sandbox

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    made = Images(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache))
    more = (folder("tmp", 0o1777), folder("old"), file("old/a", b"a"), file("old/b", b"b"))
    source = Layout(tmp_path / "layout").add([busybox(*more)], {"Env": ["A=b"], "Cmd": ["sh"]})
    made.run("pull", source, "--name", "base")
    return made


def layer(images: Images, name: str) -> dict[str, tarfile.TarInfo]:
    (*_, last) = images.told("inspect", name)["layers"]
    blob = images.cache / "agentd/oci/blobs/sha256" / last["digest"].removeprefix("sha256:")
    with tarfile.open(blob) as archive:
        return {member.name: member for member in archive}


def of_wall(program: str) -> dict[str, str]:
    """What asks for each of the walls that start of OCI images, by what builds it."""
    if program == "linux":
        return {"backend": "linux"}
    if shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None:
        pytest.skip(f"{program} is not installed")
    return {"backend": "gvisor"} if program == "runsc" else {"backend": "oci", "runtime": program}


@pytest.mark.parametrize("wall", ["linux", "crun", "runsc"])
@pytest.mark.parametrize("user", ["root", "1000"])
def test_changes_become_a_layer(user: str, wall: str, images: Images) -> None:
    options: Any = {"user": user, "writable": True, **of_wall(wall)}
    with Sandbox.create(image="base", **options) as box:
        box.run("mkdir /app && echo x > /app/x && echo c > /old/a && rm /old/b", check=True)
        box.run("echo w > /workspace/w && ln /app/x /app/y", check=True)
        made = box.commit("mine:1")
        assert box.run(["cat", "/app/x"]).text == "x\n", "it goes on"
    (row,) = [row for row in images.told("ls") if row["name"] == "mine:1"]
    assert (made.name, made.digest, made.layers) == ("mine:1", row["digest"], 2)
    assert made.bytes == row["size"] and row["source"] == f"sandbox:{box.id}"
    found = layer(images, "mine:1")
    assert set(found) == {
        "app", "app/x", "app/y", "old", "old/a", "old/.wh.b", "workspace", "workspace/w",
    }  # fmt: skip
    owner = 0 if user == "root" or os.getuid() else 1000
    assert (found["app/x"].uid, found["app/y"].linkname, found["old"].uid) == (owner, "app/x", 0)
    with Sandbox.create(image="mine:1", **options) as box:
        assert box.run("cat /app/y /old/a; ls /old; echo $A").text == "x\nc\na\nb\n"
        box.run("echo more > /app/more", check=True)
        assert box.commit("mine:1").layers == 3
    assert images.told("inspect", "mine:1")["config"]["Cmd"] == ["sh"]
    assert {row["state"] for row in images.told("verify")} == {"ready"} and images.left() == []


def test_what_changed_nothing_is_the_same_image_by_another_name(images: Images) -> None:
    async def committed() -> int:
        async with await AsyncSandbox.create(image="base") as box:
            return (await box.commit("again")).layers

    assert asyncio.run(committed()) == 1
    assert images.root("again") == images.root("base")


def test_what_cannot_be_committed_is_refused(images: Images, tmp_path: Path) -> None:
    said = r"did not start of an OCI image \(create it with image=, and writable= for"
    with Sandbox.create() as box, pytest.raises(Refused, match=said):
        box.commit("mine")
    mounts = [f"{tmp_path}:/lent:ro"]
    with (
        Sandbox.create(image="base", mounts=mounts) as box,
        pytest.raises(Refused, match="host directories are mounted"),
    ):
        box.commit("mine")
    with Sandbox.create(image="base", writable=True) as box:
        with pytest.raises(AgentdError, match="is no name for an image"):
            box.commit("../x")
        box.run("touch /old/.wh.x", check=True)
        with pytest.raises(AgentdError, match=r"'old/\.wh\.x' cannot be in an image"):
            box.commit("mine")
    assert [row["name"] for row in images.told("ls")] == ["base"] and images.left() == []


def test_the_report_has_the_name_that_was_asked_for(images: Images) -> None:
    """Another name of the same digest came first."""
    images.run("pull", f"oci:{images.folder}/layout", "--name", "another")
    for name in ("base", "another"):
        with Sandbox.create(image=name) as box:
            assert f"of the image {name}, " in box.enforcement["mount_namespace"].detail


def test_an_admin_commits_what_a_daemon_has_and_nobody_else(
    images: Images, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its sandboxes are the supervisor's; who names an image names it for everybody."""
    daemon = Daemon(tmp_path_factory.mktemp("d"))  # the path of a socket is short
    daemon.start()
    try:
        with Sandbox.create(url=daemon.url, image="base", writable=True) as box:
            box.run("echo x > /x", check=True)
            made = daemon.cli("image", "commit", box.id, "mine", "--json")
            assert json.loads(made.stdout)["layers"] == 2, made
            assert box.commit("mine").layers == 2
            scopes = ["--name", "some", "--scopes", "run,create,read,files,snapshot"]
            key = daemon.cli("key", "create", "-q", *scopes).stdout.decode().strip()
            with (
                Client(daemon.url, api_key=key) as other,
                pytest.raises(Forbidden, match="lacks the scope 'admin'"),
            ):
                other.sandboxes.commit(box.id, "base")
        with Sandbox.create(url=daemon.url, image="mine") as box:
            assert box.run(["cat", "/x"]).text == "x\n"
    finally:
        daemon.stop()


PLACES = ("workspace", "tmp", "home/sandbox")


@pytest.fixture
def full(images: Images) -> str:
    """An image that has something where sandboxes have folders of their own."""
    context = images.folder / "context"
    (context / "files/d").mkdir(parents=True)
    for name in ("keep", "change", "drop", "d/x"):
        (context / "files" / name).write_text(f"{name}\n")
    copies = "".join(f"COPY files /{place}/\n" for place in PLACES)
    (context / "Dockerfile").write_text(f"FROM base\n{copies}WORKDIR /workspace/d\n")
    images.run("build", "-t", "full", "context")
    return "full"


@pytest.mark.parametrize(
    ("wall", "user", "writable"),
    [
        *[("linux", user, writable) for user in ("root", "1000") for writable in (False, True)],
        ("runc", "1000", True),
        ("runsc", "root", False),
    ],
)
def test_what_an_image_has_at_a_writable_place_is_seen_and_changed(
    wall: str, user: str, writable: bool, full: str, images: Images
) -> None:
    options: Any = {"user": user, "writable": writable, **of_wall(wall)}
    script = "cat d/x change && rm drop && echo c >> change && mkdir new && echo n > new/n && ls"
    with Sandbox.create(image=full, **options) as box:
        assert box.run("pwd; cat x").text == "/workspace/d\nd/x\n"
        for place in PLACES:
            told = box.run(script, cwd=f"/{place}", check=True).text
            assert told == "d/x\nchange\nchange\nd\nkeep\nnew\n"
        assert box.run("stat -c %a /tmp").text == "1777\n"
        look = " && ".join(f"cat /{place}/change /{place}/new/n" for place in PLACES)
        with box.snapshot() as kept, Sandbox.create(snapshot=kept) as again:
            assert again.run(look, check=True).text == "change\nc\nn\n" * 3
            assert not again.run("test -e /workspace/drop").ok
        (copy,) = box.fork()
        with copy:
            assert copy.run(look, check=True).text == "change\nc\nn\n" * 3
        box.commit("later")
    names = {f"{place}/{name}" for place in PLACES for name in ("change", ".wh.drop", "new/n")}
    assert names <= set(layer(images, "later"))
    with Sandbox.create(image="later", **options) as box:
        assert box.run(look, check=True).text == "change\nc\nn\n" * 3
        assert not box.run("ls /workspace/drop").ok
