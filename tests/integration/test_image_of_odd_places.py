"""Images whose directories are not where most have them: a linked /etc, a WorkingDir to be made."""

from pathlib import Path
from typing import Any

import pytest
from tests.oci import Images, Layout, busybox, file, folder, link

from agentd import Refused, Sandbox
from agentd.sandbox.backends.oci import runtimes

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]
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


@pytest.mark.parametrize("above", ["home", "var"])
def test_an_etc_behind_a_link_to_where_ours_lies_is_there(
    above: str, images: Images, tmp_path: Path, wall: str
) -> None:
    more = folder("own"), folder("own/etc"), file("own/etc/passwd", PASSWD)
    pull(images, tmp_path, None, link("etc", f"{above}/etc"), link(above, "own"), *more)
    with Sandbox.create(image="odd", backend=wall) as box:
        assert "127.0.0.1 localhost\n" in box.run("cat /etc/hosts").text
        kept = box.run("cat /etc/passwd").text  # of /home there is one of ours
        assert kept == (PASSWD.decode() if above == "var" else "")


def test_a_mount_behind_a_link_to_where_ours_lies_is_where_it_was_asked_for(
    images: Images, tmp_path: Path, wall: str
) -> None:
    pull(images, tmp_path, None, link("home", "var/home"), folder("var"), folder("var/home"))
    lent = tmp_path / "lent"
    lent.mkdir()
    (lent / "x").write_text("lent")
    with Sandbox.create(image="odd", backend=wall, mounts=[f"{lent}:/home/me/lent"]) as box:
        assert box.run("cat /home/me/lent/x").text == "lent"


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        ("/srv/x", "/data/x", "are one place"),
        ("/srv/x", "/data/x/y", "lie one inside the other"),
        ("/data/x/y", "/srv/x", "lie one inside the other"),
    ],
)
def test_two_mounts_that_the_images_links_put_in_one_place_are_refused(
    images: Images, tmp_path: Path, one: str, other: str, how: str
) -> None:
    pull(images, tmp_path, None, link("data", "srv"), folder("srv"))
    mounts = [f"{tmp_path}:{one}", f"{tmp_path}:{other}"]
    with pytest.raises(Refused, match=f"{one} and {other} {how} in the image odd"):
        Sandbox.create(image="odd", mounts=mounts)


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


@pytest.mark.parametrize("leads", ["tmp/a", "home/sandbox", "mounted"])
def test_a_working_directory_behind_a_link_is_made_where_it_leads(
    leads: str, images: Images, tmp_path: Path, wall: str
) -> None:
    pull(images, tmp_path, {"WorkingDir": "/app/x", "User": "77"}, link("app", leads))
    lent = tmp_path / "lent"
    lent.mkdir(mode=0o777)
    lent.chmod(0o777)
    with Sandbox.create(image="odd", backend=wall, mounts=[f"{lent}:/mounted:rw"]) as box:
        assert box.run("pwd; touch x && echo made").text == f"/{leads}/x\nmade\n"
        assert box.run("cd /app/x && ls").text == "x\n"


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
