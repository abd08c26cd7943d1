"""Images whose directories are not where most have them: a linked /etc, a WorkingDir to be made."""

from pathlib import Path
from typing import Any

import pytest
from tests.oci import Images, Layout, busybox, file, folder, link

from agentd import Refused, Sandbox
from agentd.sandbox.backends.oci import runtimes

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(300)]
PASSWD = b"root:x:0:0::/root:/bin/sh\nnode:x:77:77::/:/bin/sh\n"
LINKED = (link("etc", "usr/etc"), folder("usr"), folder("usr/etc"), file("usr/etc/passwd", PASSWD))
OWN = "/tmp/a/b", "/home/sandbox/x", "/workspace/app", "/dev/shm/q"


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    made = Images(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache))
    return made


@pytest.fixture(params=["linux", "oci"])
def wall(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "oci" and not any(map(runtimes.find, runtimes.RUNTIMES)):
        pytest.skip("no runtime is installed")
    return name


def pull(images: Images, tmp_path: Path, config: Any, *more: Any, name: str = "odd") -> None:
    layout = Layout(tmp_path / f"layout-{name}")
    images.run("pull", layout.add([busybox(*more)], config, tag=name), "--name", name)


def test_what_a_linked_etc_leads_to_is_to_be_seen(
    images: Images, tmp_path: Path, wall: str
) -> None:
    pull(images, tmp_path, {"User": "node"}, *LINKED)
    for writable in (False, True):
        with Sandbox.create(image="odd", backend=wall, writable=writable) as box:
            assert box.run("id -un; readlink /etc; cat /etc/passwd").text == (
                f"node\nusr/etc\n{PASSWD.decode()}"
            )
            assert "127.0.0.1 localhost\n" in box.run("cat /etc/hosts").text


@pytest.mark.parametrize("leads", ["/etc", "nowhere", "file", "/tmp", "/proc/1"])
def test_an_etc_that_leads_to_no_folder_of_the_images_is_ours(
    leads: str, images: Images, tmp_path: Path
) -> None:
    pull(images, tmp_path, None, link("etc", leads), file("file", b"x"), folder("tmp"))
    with Sandbox.create(image="odd") as box:
        assert box.run(["ls", "/etc"]).text == "hosts\n"
        assert "127.0.0.1 localhost\n" in box.run(["cat", "/etc/hosts"]).text


def test_a_build_keeps_a_linked_etc(images: Images, tmp_path: Path) -> None:
    pull(images, tmp_path, None, *LINKED)
    context = tmp_path / "context"
    context.mkdir()
    script = "grep -q node /etc/passwd && echo more > /etc/more && echo 1.2.3.4 x >> /etc/hosts"
    (context / "Dockerfile").write_text(f"FROM odd\nRUN {script}\n")
    images.run("build", "-t", "built", str(context))
    (found,) = (tmp_path / "cache").rglob("usr/etc/more")
    assert not (found.parent / "hosts").exists()
    with Sandbox.create(image="built") as box:
        assert box.run("readlink /etc; cat /usr/etc/more").text == "usr/etc\nmore\n"


def test_a_working_directory_in_a_place_of_the_sandboxs_own_is_made(
    images: Images, tmp_path: Path, wall: str
) -> None:
    for index, path in enumerate(OWN):
        pull(images, tmp_path, {"WorkingDir": path, "User": "77"}, name=f"odd{index}")
        with Sandbox.create(image=f"odd{index}", backend=wall) as box:
            assert box.run("pwd; touch x && stat -c %u x").text == f"{path}\n77\n"


def test_a_working_directory_in_a_mount_is_made(images: Images, tmp_path: Path) -> None:
    pull(images, tmp_path, {"WorkingDir": "/data/app"})
    lent = tmp_path / "lent"
    lent.mkdir()
    with Sandbox.create(image="odd", mounts=[f"{lent}:/data:rw"]) as box:
        assert box.run("pwd; touch x").text == "/data/app\n"
    assert (lent / "app/x").exists()


def test_a_working_directory_that_is_a_file_is_refused(images: Images, tmp_path: Path) -> None:
    for index, path in enumerate(("/bin/sh", "/file/x")):
        pull(images, tmp_path, {"WorkingDir": path}, file("file", b""), name=f"odd{index}")
        with pytest.raises(Refused, match=f"begins in {path}, and /.* in it is a file"):
            Sandbox.create(image=f"odd{index}")
