"""Sandboxes of OCI images on the namespace wall: by the SDK, the command line and REST."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_client_of_a_daemon import Daemon
from tests.oci import Images, Layout, busybox, file, folder, link

from agentd import AgentdError, NotFound, Refused, Sandbox

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]
PASSWD = b"root:x:0:0::/root:/bin/sh\nnode:x:77:77::/home/node:/bin/sh\n"


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    made = Images(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache))
    return made


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def pulled(images: Images, layout: Layout, config: Any = None, *more: Any) -> str:
    """The name of an image of busybox and ``more``."""
    name = f"image-{len(list((layout.path / 'blobs/sha256').iterdir()))}"
    images.run("pull", layout.add([busybox(*more)], config, tag=name), "--name", name)
    return name


def said(box: Sandbox, command: str | list[str], **options: Any) -> str:
    return box.run(command, **options).stdout.decode()


def test_an_image_without_python_does_all_that_a_sandbox_does(
    images: Images, layout: Layout, tmp_path: Path
) -> None:
    """The agent needs nothing of it: no interpreter, no library, no /tmp, no /proc."""
    name = pulled(images, layout)
    (tmp_path / "lent").mkdir()
    (tmp_path / "lent/x").write_text("lent")
    with Sandbox.create(image=name, mounts=[f"{tmp_path}/lent:/data/x:ro"]) as box:
        assert said(box, ["id", "-u"], check=True) == "0\n"
        assert said(box, "pwd; ls /usr 2>&1; echo $PATH") == (
            "/workspace\nls: /usr: No such file or directory\n"
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        )
        box.files.write("/workspace/a", b"b")
        assert said(box, ["cat", "a", "/data/x/x"]) == "blent"
        assert box.files.read("/workspace/a") == b"b"
        assert "read-only" in box.run(["touch", "/new"]).stderr.decode().lower()
        assert said(box, "echo x > /tmp/x && echo y > ~/y && cat /tmp/x ~/y") == "x\ny\n"
        assert box.run(["nosuch"]).cause.code == "spawn_failed"
        detail = box.enforcement["mount_namespace"].detail
        (row,) = images.told("ls")
        assert f"read-only, of the image {name}, {row['digest']}" in detail


@pytest.mark.parametrize("user", ["root", "1000"])
def test_a_writable_root_is_of_one_sandbox_alone(user: str, images: Images, layout: Layout) -> None:
    name = pulled(images, layout, {"WorkingDir": "/app"}, folder("app"), file("app/a", b"a"))
    options: Any = {"image": name, "writable": True, "user": user, "disk": "16M"}
    with Sandbox.create(**options) as box:
        script = "mkdir /new /etc/x && echo b > a && echo c > /bin/c && rm /bin/id && cat a /bin/c"
        assert said(box, script) == "b\nc\n"
        assert "/bin/id" not in said(box, "ls /bin/*")
        assert not box.run("cat /dev/zero > /new/zero; r=$?; rm /new/zero; exit $r").ok
        assert "can be written to, of the image" in box.enforcement["mount_namespace"].detail
        for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"):
            assert not box.run(f"echo x > {path}").ok
        kept = box.snapshot()
    with kept, Sandbox.create(snapshot=kept) as again:
        assert said(again, "cat a /bin/c; ls -d /new") == "b\nc\n/new\n"
        images.run("pull", layout.add([busybox()], tag="new"), "--name", name)
        with pytest.raises(Refused, match="is another image now than the one that the snapshot"):
            Sandbox.create(snapshot=kept)
    images.run("pull", f"oci:{layout.path}:{name}", "--name", name)
    with Sandbox.create(**options) as box:
        assert said(box, "cat a; ls -d /new /etc/x; id -u").startswith("a")
    assert images.told("verify", name) == [{"name": name, "state": "ready"}]


def test_nothing_of_the_hosts_is_to_be_seen(images: Images, layout: Layout) -> None:
    """Also after a sandbox whose writable root has made copies of the host's in the zygote."""
    with Sandbox.create(writable=True) as other:
        assert other.run(["ls", "/etc/passwd"]).ok
    with Sandbox.create(image=pulled(images, layout)) as box:
        assert set(said(box, "ls -A /.agentd").split()) <= {
            "certificates",
            "cgroup",
            "empty",
            "nothing",
        }
        assert said(box, "ls -A /.agentd/nothing /etc /var /run").split() == [
            *("/.agentd/nothing:", "/etc:", "hosts", "/run:", "/var:")
        ]
        mounts = said(box, ["cat", "/proc/mounts"]).splitlines()
        kinds = {line.split()[1]: line.split()[2] for line in mounts}
        real = {path: kind for path, kind in kinds.items() if kind in ("ext4", "xfs", "btrfs")}
        assert real == {}


def test_what_the_image_says_is_respected(images: Images, layout: Layout) -> None:
    config = {"Env": ["A=image", "B=image", "PATH=/bin"], "WorkingDir": "/srv/app", "User": "node"}
    name = pulled(images, layout, config, folder("etc"), file("etc/passwd", PASSWD))
    with Sandbox.create(image=name, env={"B": "mine"}) as box:
        assert said(box, "pwd; id -u; echo $A $B $PATH") == "/srv/app\n77\nimage mine /bin\n"
        assert said(box, "pwd", cwd="/bin") == "/bin\n"
    with Sandbox.create(image=name, user="root") as box:
        assert said(box, ["id", "-u"]) == "0\n"
    with Sandbox.create(image=name, user="1234") as box:
        assert said(box, ["id", "-u"]) == "1234\n"


def test_a_limit_of_processors_is_told_to_its_programs(images: Images, layout: Layout) -> None:
    told = "echo $OMP_NUM_THREADS $PYTHON_CPU_COUNT"
    with Sandbox.create(image=pulled(images, layout), cpus=1.5) as box:
        assert said(box, told) == "2 2\n"
    chosen = {"Env": ["OMP_NUM_THREADS=7"]}
    with Sandbox.create(image=pulled(images, layout, chosen), cpus=1.5) as box:
        assert said(box, told) == "7 2\n"


def test_the_suite_of_walls_runs_over_an_image(images: Images, layout: Layout) -> None:
    """What the image lacks is named by the case that needs it, and none of the wall is missing."""
    name = pulled(images, layout)
    suite = ["agentd.testing.walls.test_run", "agentd.testing.walls.test_enforcement"]
    cases = "test_state_stays or test_seccomp or test_a_namespace_is"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-p",
            "no:cacheprovider",
            "--pyargs",
            *suite,
            "--backend",
            "linux",
            "--image",
            name,
            "-k",
            cases,
        ],
        cwd=images.folder,
        env=images.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"it needs /usr/bin/python3 inside, and the image {name} on linux" in done.stdout
    assert "7 passed, 1 skipped" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("user", "uid"), [("", "0"), ("root", "0"), ("0:0", "0"), ("77:88", "77"), ("node:node", "77")]
)
def test_the_user_of_an_image(user: str, uid: str, images: Images, layout: Layout) -> None:
    more = (folder("etc"), link("etc/passwd", "/real"), file("real", PASSWD))
    with Sandbox.create(image=pulled(images, layout, {"User": user}, *more)) as box:
        assert said(box, ["id", "-u"]) == f"{uid}\n"


@pytest.mark.parametrize(
    "passwd",
    [
        [],
        [folder("etc"), link("etc/passwd", "../../../../../../../../../etc/passwd")],
        [folder("etc"), link("etc/passwd", "/proc/self/root/etc/passwd")],
        [folder("etc"), file("etc/passwd", type=b"6")],  # a fifo, which nobody writes
        [folder("etc"), folder("etc/passwd")],
    ],
)
def test_a_user_whom_the_image_does_not_have_is_refused(
    passwd: list[Any], images: Images, layout: Layout
) -> None:
    """Also where its passwd leads to the host's, which has one of that name."""
    name = pulled(images, layout, {"User": "daemon"}, *passwd)
    with pytest.raises(Refused, match="runs as 'daemon', who is not in its /etc/passwd"):
        Sandbox.create(image=name)
    with Sandbox.create(image=name, user="5") as box:  # id would wait for somebody to write it
        assert said(box, ["stat", "-c", "%u", "/workspace"]) == "5\n"


@pytest.mark.parametrize("number", ["4294967295", "9" * 5000])
@pytest.mark.parametrize("user", ["", "many"])
def test_a_number_that_no_user_has_is_refused_by_the_image(
    user: str, number: str, images: Images, layout: Layout
) -> None:
    """In its configuration or its passwd: the caller named nobody, and is told who did."""
    passwd = (folder("etc"), file("etc/passwd", f"many:x:{number}:0::/:/bin/sh\n".encode()))
    name = pulled(images, layout, {"User": user or number}, *passwd)
    with pytest.raises(Refused, match=f"the image {name} runs as '{user or '[49]'}") as told:
        Sandbox.create(image=name)
    assert len(told.value.message) < 400 and "user=" in told.value.remediation


def test_links_of_an_image_are_in_the_way_of_no_mount(
    images: Images, layout: Layout, tmp_path: Path
) -> None:
    places = ("tmp", "proc", "dev", "sys", "etc", "run", "workspace", "home")
    name = pulled(
        images, layout, {"WorkingDir": "/l/deep/er"},
        *(link(place, "/bin") for place in places), link("l", "m"), link("m", "../real"),
        folder("real"), folder("real/deep"), file("real/deep/here", b"h"),
    )  # fmt: skip
    (tmp_path / "lent").mkdir()
    with Sandbox.create(image=name, mounts=[f"{tmp_path}/lent:/m/lent:rw"]) as box:
        assert said(box, ["pwd"]) == "/real/deep/er\n"
        assert said(box, "ls /real/deep; ls -d /real/lent") == "er\nhere\n/real/lent\n"
        box.run("echo x > /m/lent/x; echo y > /tmp/y; test -c /dev/null && echo z > /workspace/z")
        assert (tmp_path / "lent/x").read_text() == "x\n"
        assert said(box, ["cat", "/tmp/y", "/workspace/z"]) == "y\nz\n"
        assert said(box, ["readlink", "/proc/self"]).strip().isdigit()
        assert "busybox" in said(box, ["ls", "/bin"])
        assert "y" not in said(box, ["ls", "/bin"]).split()


def test_attributes_by_which_an_overlay_leads_elsewhere_do_nothing(
    images: Images, layout: Layout
) -> None:
    """It reads those of the image as those of any layer; what they could name lies in the image."""
    attributes = {
        "SCHILY.xattr.user.overlay.redirect": "/../../../../etc",
        "SCHILY.xattr.user.overlay.metacopy": "",
        "SCHILY.xattr.user.overlay.opaque": "y",
    }
    more = (folder("d", pax_headers=attributes), file("f", b"f", pax_headers=attributes))
    name = pulled(images, layout, None, *more)
    with Sandbox.create(image=name) as box:
        assert said(box, ["ls", "/d"]) == ""
        assert "root:" not in said(box, ["cat", "/f", "/d/passwd"])


def test_an_image_in_use_is_kept_until_its_last_sandbox_has_ended(
    images: Images, layout: Layout
) -> None:
    name = pulled(images, layout)
    root = images.root(name)
    with Sandbox.create(image=name) as one:
        with Sandbox.create(image=name) as other:
            assert "1 in use" in images.run("rm", name).stderr
            assert said(other, ["id", "-u"]) == "0\n"
        assert images.told("prune")["in_use"] == 1
        assert one.run(["cat", "/bin/busybox"]).ok and root.exists()
        with pytest.raises(NotFound, match=f"no image '{name}'") as refused:
            Sandbox.create(image=name)
        assert not refused.value.infrastructure  # the same again ends the same way
    deadline = time.monotonic() + 60  # what an ended sandbox held is freed behind our back
    while images.told("prune")["in_use"]:
        assert time.monotonic() < deadline
    assert not root.exists()


def test_what_is_no_image_of_oci_is_told(images: Images, layout: Layout) -> None:
    for name in ("nosuch", "docker://nosuch"):
        with pytest.raises(AgentdError, match="agentd image pull docker://nosuch;"):
            Sandbox.create(image=name)
    machine = images.cache / "agentd/images"
    machine.mkdir(parents=True)
    (machine / "mine").symlink_to(".builds/x")
    with pytest.raises(Refused, match=r"mine is a machine image.*isolation=.microvm"):
        Sandbox.create(image="mine", backend="linux")
    with pytest.raises(Refused, match="backend landlock takes no image"):
        Sandbox.create(image=pulled(images, layout), backend="landlock", isolation="process")


def test_the_root_that_was_damaged_is_told_with_the_fix(images: Images, layout: Layout) -> None:
    name = pulled(images, layout)
    images.root(name).parent.rename(images.folder / "moved")
    with pytest.raises(
        AgentdError, match=f"{name}.*its unpacked root is gone .*build it again, as {name}"
    ):
        Sandbox.create(image=name)


def test_the_agent_imports_nothing_once_the_root_is_the_images() -> None:
    script = (
        "from agentd.guest.zygote.image_root import import_nothing; import_nothing()\n"
        "import time\n"
        "try: import antigravity\n"
        "except ImportError: print('none')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"none\n"


@pytest.fixture
def daemon(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("d"))  # the path of a socket is short
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("config", "code", "wrote"),
    [
        ({"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["pwd; exit 3"]}, 3, "/workspace\n"),
        ({"Cmd": ["cat", "/bin/x"]}, 1, ""),
        ({}, 2, ""),
    ],
)
def test_without_a_command_the_images_is_run(
    config: Any, code: int, wrote: str, images: Images, layout: Layout, daemon: Daemon
) -> None:
    name = pulled(images, layout, config)
    for where in ([], ["--embedded"]):
        done = daemon.cli("run", *where, "--image", name)
        assert (done.returncode, done.stdout.decode()) == (code, wrote), done
        if code == 2:
            assert f"the image {name} has none" in done.stderr.decode()


def test_by_a_daemon(images: Images, layout: Layout, daemon: Daemon) -> None:
    name = pulled(images, layout, {"Env": ["A=b"], "WorkingDir": "/srv"})
    done = daemon.cli("run", "--image", name, "--", "sh", "-c", "pwd; echo $A")
    assert (done.returncode, done.stdout) == (0, b"/srv\nb\n"), done
    with Sandbox.create(url=daemon.url, image=name) as box:
        assert said(box, "pwd; echo $A") == "/srv\nb\n"
        shown = json.loads(daemon.cli("inspect", "--json", box.id).stdout)
        assert shown["image"] == name
    assert os.environ["XDG_CACHE_HOME"] == str(images.cache)
