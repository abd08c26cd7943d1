"""Snapshots of files as archives of OCI images: by the command line, the SDK and REST."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.oci import Images, Layout, busybox, file, folder
from tests.security.daemons import Daemon, fixture

from agentd import (
    AgentdError,
    AsyncClient,
    Client,
    Forbidden,
    InvalidInput,
    NotFound,
    Refused,
    Sandbox,
    SandboxError,
)
from agentd.client.cli.main import main

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]
daemon = fixture()
CHANGE = "mkdir /app && echo x > /app/x && rm /old/b && echo w > /workspace/w && echo t > /tmp/t"
LOOK = "cat /app/x /workspace/w /tmp/t; ls /old; echo $A"


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    made = Images(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache))
    more = (folder("tmp", 0o1777), folder("old"), file("old/a", b"a"), file("old/b", b"b"))
    source = Layout(tmp_path / "layout").add([busybox(*more)], {"Env": ["A=b"]})
    made.run("pull", source, "--name", "base")
    return made


def names(archive: Path, number: int) -> dict[str, tarfile.TarInfo]:
    """What is in a layer of the image in it."""
    with tarfile.open(archive) as outer:

        def blob(digest: str) -> Any:
            return outer.extractfile(f"blobs/sha256/{digest.removeprefix('sha256:')}")

        index = json.load(outer.extractfile("index.json"))  # type: ignore[arg-type]
        manifest = json.load(blob(index["manifests"][0]["digest"]))
        with tarfile.open(fileobj=blob(manifest["layers"][number]["digest"])) as layer:
            return {member.name: member for member in layer}


@pytest.mark.parametrize("program", ["linux", "crun", "runsc"])
def test_one_of_an_image_is_that_with_what_was_changed(
    program: str, images: Images, tmp_path: Path
) -> None:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if program != "linux" and shutil.which(program, path=path) is None:
        pytest.skip(f"{program} is not installed")
    backend = {"crun": "oci", "runsc": "gvisor"}.get(program, "linux")
    runtime = {"runtime": "crun"} if program == "crun" else {}
    options: Any = {"backend": backend, "user": "root", "writable": True, "embedded": True}
    with Sandbox.create(image="base", **options, **runtime) as box:
        box.run(CHANGE, check=True)
        told = box.run(LOOK).text
        kept = box.snapshot(tmp_path / "kept")
    assert told == "x\nw\nt\na\nb\n"
    archive = tmp_path / "x.tar"
    kept.export(archive)
    assert archive.stat().st_mode & 0o077 == 0o044, "as any file of the caller's"
    inspected = subprocess.run(
        ["skopeo", "inspect", f"oci-archive:{archive}"], capture_output=True, check=True, timeout=60
    )
    assert len(json.loads(inspected.stdout)["Layers"]) == 2
    assert {"app/x", "old/.wh.b", "workspace/w", "tmp/t"} <= set(names(archive, -1))
    images.run("pull", f"oci-archive:{archive}", "--name", "again")
    with Sandbox.create(image="again", **options, **runtime) as box:
        assert box.run(LOOK).text == told
    assert images.left() == []


def test_without_an_image_it_is_what_was_written(
    images: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept, archive = str(tmp_path / "kept"), str(tmp_path / "x.tar")
    script = "echo w > w; ln w d; ln -s w l; echo h > ~/h; chmod 4711 w; echo t > /tmp/t"
    assert main(["run", "--embedded", "--save-snapshot", kept, "--", "sh", "-c", script]) == 0
    for _ in range(2):  # the second one replaces the first
        assert main(["snapshot", "export", kept, archive]) == 0
    capfd.readouterr()
    assert main(["snapshot", "export", kept, archive, "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"exported": archive}
    assert main(["snapshot", "export", kept, "-", "--json"]) == 2
    words = [sys.executable, "-m", "agentd", "snapshot", "export", kept, "-"]
    piped = tmp_path / "piped.tar"
    piped.write_bytes(subprocess.run(words, capture_output=True, check=True).stdout)
    found = names(Path(archive), 0)
    assert found.keys() == names(piped, 0).keys()
    home = {"home", "home/sandbox", "home/sandbox/h"} - {"home"}
    files = {"workspace", "workspace/w", "workspace/d", "workspace/l", "tmp", "tmp/t", *home}
    assert files <= set(found)
    assert (found["workspace/w"].mode, found["workspace/l"].linkname) == (0o4711, "w")
    images.run("pull", f"oci-archive:{archive}", "--name", "files")
    assert (images.root("files") / "workspace/w").read_text() == "w\n"
    assert (images.root("files") / "home/sandbox/h").read_text() == "h\n"


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    images: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Sandbox.create(backend="linux", image="base", embedded=True) as box:
        box.run("echo w > /workspace/w", check=True)
        kept = box.snapshot(tmp_path / "kept")
    place = tmp_path / "out"
    place.mkdir()
    (place / "mine").write_text("of the caller's")
    for path, why in (
        (place / "mine", "is no archive of an image"),
        (place, "is a directory"),
    ):
        with pytest.raises(InvalidInput, match=why):
            kept.export(path)
    with pytest.raises(AgentdError, match=r"no/x\.tar cannot be written: No such file"):
        kept.export(place / "no/x.tar")
    assert main(["snapshot", "export", str(tmp_path / "kept")]) == 2
    assert "FILE is missing" in capfd.readouterr().err
    assert main(["snapshot", "inspect", str(tmp_path / "kept"), "x"]) == 2
    images.run("rm", "base")
    with pytest.raises(Refused, match=r"the image that snapshot .* was taken of is not there"):
        kept.export(place / "x.tar")
    content = tmp_path / "kept/state/content"
    content.write_bytes(content.read_bytes()[:-1] + b"!")
    with pytest.raises(SandboxError, match="is damaged"):
        kept.export(place / "x.tar")
    manifest = tmp_path / "kept/manifest.json"
    manifest.write_text(manifest.read_text().replace('"files",', '"memory",'))
    assert main(["snapshot", "export", str(tmp_path / "kept"), str(place / "x.tar")]) == 125
    assert "the snapshot is no image's layer" in capfd.readouterr().err
    assert os.listdir(place) == ["mine"] and images.left() == []


def test_a_daemons_is_an_admins_to_export(daemon: Daemon, tmp_path: Path) -> None:
    """No policy is asked about the files in it."""
    alice, boss = daemon.key("alice"), daemon.key("boss", "admin")
    made = daemon.sandbox(boss, backend="linux")
    daemon.ask("POST", f"/v1/sandboxes/{made}/exec", {"cmd": "echo kept > a"}, key=boss)
    id_ = daemon.cli("snapshot", "take", made, key=boss).stdout.decode().strip()
    whole = daemon.ask("GET", f"/v1/snapshots/{id_}/export", key=boss)
    assert (whole.status, whole.headers["content-type"]) == (200, "application/x-tar")
    (tmp_path / "rest.tar").write_bytes(whole.body)
    path = str(tmp_path / "cli.tar")
    done = daemon.cli("snapshot", "export", id_, path, key=boss)
    assert done.returncode == 0, done.stderr
    done = daemon.cli("snapshot", "export", id_, "-", key=boss)
    assert done.returncode == 0, done.stderr
    (tmp_path / "piped.tar").write_bytes(done.stdout)
    with Client(daemon.url, api_key=boss) as client:
        (tmp_path / "sdk.tar").write_bytes(b"".join(client.snapshots.export(id_)))
        with pytest.raises(NotFound):
            list(client.snapshots.export("snp-0123456789abcdef"))
    asyncio.run(_export(daemon, boss, id_, tmp_path / "aio.tar"))
    with Sandbox.connect(made, url=daemon.url, api_key=boss) as box, box.snapshot() as kept:
        kept.export(tmp_path / "object.tar")
    for name in ("rest", "cli", "piped", "sdk", "aio", "object"):
        found = names(tmp_path / f"{name}.tar", 0)
        assert "workspace/a" in found, name
    mine = daemon.sandbox(alice, backend="linux")
    own = daemon.cli("snapshot", "take", mine, key=alice).stdout.decode().strip()
    refused = daemon.ask("GET", f"/v1/snapshots/{own}/export", key=alice)
    assert (refused.status, refused.code) == (403, "forbidden")
    with Client(daemon.url, api_key=alice) as client, pytest.raises(Forbidden, match="admin"):
        list(client.snapshots.export(own))
    done = daemon.cli("snapshot", "export", own, str(tmp_path / "no.tar"), key=alice)
    assert done.returncode == 125 and not (tmp_path / "no.tar").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


async def _export(daemon: Daemon, key: str, id_: str, path: Path) -> None:
    async with AsyncClient(daemon.url, api_key=key) as client:
        path.write_bytes(b"".join([piece async for piece in client.snapshots.export(id_)]))


def test_a_break_in_the_middle_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from agentd.client import exported

    def broken() -> Any:
        yield b"some"
        raise AgentdError("it broke")

    with pytest.raises(AgentdError, match="it broke"):
        exported.write(broken(), tmp_path / "x.tar")
    with pytest.raises(AgentdError, match=r"no/x\.tar cannot be written: No such file"):
        exported.write(iter([b"some"]), tmp_path / "no/x.tar")
    assert os.listdir(tmp_path) == []
