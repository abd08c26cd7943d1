"""The disk that machines have an OCI image from: as the image has it, made once, whatever ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.oci import Images, Layout, busybox, file, folder, link

from agentd.image.model import Corrupt, ImageError
from agentd.image.oci.make_disk import ensure
from agentd.image.oci.store import OciStore
from agentd.model.errors import Unavailable

pytestmark = [pytest.mark.needs("skopeo", "umoci", "mkfs.erofs", "dump.erofs")]
MAKE = """
from agentd.image.oci.make_disk import ensure
from agentd.image.oci.store import OciStore
store = OciStore()
image = store.get("mine")
with store.lease(image):
    print(ensure(store, image, lambda what, done, steps: print(what, done, flush=True))[1].digest)
"""


# It stands still there, so that it is killed there.
HOLD = """
import time
from agentd.image.oci import make_disk
def held(*_, **__):
    print("held", flush=True)
    time.sleep(600)
make_disk.{} = held
"""


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Images]:
    made = Images(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache))
    return made


def pulled(images: Images, *entries: Any) -> None:
    layout = Layout(images.folder / f"layout{len(os.listdir(images.folder))}")
    images.run("pull", layout.add([busybox(*entries)]), "--name", "mine")


def made() -> Path:
    store = OciStore()
    image = store.get("mine")
    with store.lease(image):
        return Path(ensure(store, image, lambda what, done, steps: None)[0])


def started(images: Images, first: str = "") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", first + MAKE], env=images.env, stdout=subprocess.PIPE, text=True
    )


def facts(disk: Path, path: str) -> str:
    done = subprocess.run(
        ["dump.erofs", f"--path={path}", str(disk)], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_files_have_the_owners_modes_and_times_of_the_image(images: Images) -> None:
    long = "n" * 250
    pulled(
        images,
        folder("home/node", 0o700, uid=77, gid=88, mtime=1_700_000_000),
        file("home/node/f", b"four", 0o640, uid=100_000, gid=5_000_000, mtime=1_600_000_001),
        file("closed", b"c", 0o000),
        link("home/node/h", "home/node/f", hard=True),
        file(f"{long}/{long}", b"deep"),
        file("caf\udce9", b"not UTF-8"),
    )
    disk = made()
    home, inner = facts(disk, "/home/node"), facts(disk, "/home/node/f")
    assert "Uid: 77   Gid: 88  Access: 0700" in home and "2023-11-14 22:13:20" in home
    assert "Uid: 100000   Gid: 5000000  Access: 0640" in inner and "Links: 2" in inner
    assert "2020-09-13 12:26:41" in inner
    assert "Size: 1 " in facts(disk, "/closed")
    assert "Size: 4 " in facts(disk, f"/{long}/{long}")
    assert "Uid: 0   Gid: 0  Access: 0755" in facts(disk, "/bin/busybox")
    assert disk.stat().st_mode & 0o777 == 0o444 and disk.stat().st_uid == os.geteuid()


def test_it_is_made_once_whoever_asks(images: Images) -> None:
    pulled(images)
    processes = [started(images) for _ in range(3)]
    said = [process.communicate()[0].splitlines() for process in processes]
    assert sum("making a disk of mine 0" in lines for lines in said) == 1
    assert len({lines[-1] for lines in said}) == 1
    first = made()
    content = first.read_bytes()
    first.unlink()
    assert made().read_bytes() == content  # the same root gives the same disk
    assert images.left() == []


@pytest.mark.parametrize("step", ["_take", "_write"])
def test_one_who_is_killed_leaves_nothing_that_counts(step: str, images: Images) -> None:
    """With the archive and the disk in its folder, and with the disk in place."""
    pulled(images)
    with started(images, HOLD.format(step)) as process:
        assert process.stdout is not None
        assert "held\n" in process.stdout
        process.send_signal(signal.SIGKILL)
    place = images.root("mine").parent
    assert (place / "disk.erofs").exists() == (step == "_write")
    assert not (place / "disk.json").exists()
    assert images.told("inspect", "mine")["disk"] is None
    assert images.told("verify") == [{"name": "mine", "state": "ready"}]
    assert images.told("prune")["in_use"] == 0
    assert images.left() == []
    assert images.told("inspect", "mine")["disk"] is None and made().exists()


def test_the_images_commands_know_it(images: Images) -> None:
    pulled(images)
    assert images.told("inspect", "mine")["disk"] is None
    disk = made()
    told = images.told("inspect", "mine")["disk"]
    assert told["path"] == str(disk) and told["size"] == disk.stat().st_size
    assert f"disk     {disk}" in images.run("inspect", "mine").stdout
    assert images.told("verify") == [{"name": "mine", "state": "ready"}]
    size = disk.stat().st_size
    with OciStore().lease(OciStore().get("mine")):
        images.run("rm", "mine")
        assert images.told("prune")["in_use"] == 1 and disk.exists()
    assert images.told("prune")["freed"] >= 2 * size - (1 << 16)  # the root's files, and these
    assert not disk.exists()


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_one_that_was_damaged_is_found_and_made_anew(damage: str, images: Images) -> None:
    pulled(images)
    disk = made()
    content = disk.read_bytes()
    disk.chmod(0o644)
    if damage == "gone":
        disk.unlink()
    else:
        disk.write_bytes(content[:-4096] + (b"x" * 4096 if damage == "changed" else b""))
    (row,) = images.told("verify", code=1)
    assert "its disk for virtual machines" in row["state"]
    source = images.told("inspect", "mine")["source"]
    images.run("pull", source, "--name", "mine")
    assert images.told("verify") == [{"name": "mine", "state": "ready"}]
    assert made().read_bytes() == content


def test_no_room_and_no_program_are_told(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled(images, file("big", b"", 0o644))
    os.truncate(images.root("mine") / "big", 1 << 43)  # a hole: more than is free
    with pytest.raises(ImageError, match="there is no room for a disk of mine"):
        made()
    assert images.left() == []
    monkeypatch.setattr("agentd.image.oci.tools._PATH", str(images.folder))
    with pytest.raises(Unavailable, match=r"mkfs.erofs is not installed.*erofs-utils"):
        made()


def test_a_record_that_is_not_ours_is_damage(images: Images) -> None:
    pulled(images)
    disk = made()
    disk.with_name("disk.json").write_bytes(b"[]")
    with pytest.raises(Corrupt):
        made()
