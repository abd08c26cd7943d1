"""Virtual machines of OCI images, by QEMU: by the SDK, the command line and REST.

One template is booted for all; each machine that is made of it does as much as it can.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_client_of_a_daemon import Daemon
from tests.oci import BUSYBOX, Images, Layout, busybox, file, folder, link

from agentd import NotFound, Refused, Sandbox, Unsupported
from agentd.client.http import address
from agentd.client.http.client import HttpClient
from agentd.image import store
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.firecracker.backend import FirecrackerBackend

pytestmark = [
    pytest.mark.needs("skopeo", "umoci", "mkfs.erofs", "qemu-system-x86_64"),
    pytest.mark.timeout(900),
]
SMALL: Any = {"backend": "qemu", "isolation": "microvm", "memory": "64M", "disk": "24M"}
PASSWD = b"root:x:0:0::/root:/bin/sh\nnode:x:77:77::/home/node:/bin/sh\n"
CONFIG = {
    "Env": ["A=image", "B=image"],
    "WorkingDir": "/l/app",
    "User": "node",
    "Entrypoint": ["/bin/sh", "-c"],
    "Cmd": ["id -u; pwd; exit 3"],
}
ENTRIES = (
    folder("etc"), file("etc/passwd", PASSWD), link("l", "/srv"), folder("srv"),
    folder("home"), folder("home/node", 0o700, uid=77, gid=77),
    file("home/node/f", b"four", 0o600, uid=77, gid=77), file("set", b"s", 0o4755),
    *(link(place, "/bin") for place in ("tmp", "run", "workspace", "proc")),
)  # fmt: skip


# At places that are a sandbox's to write.
IN_PLACES = (
    folder("workspace", uid=5), file("workspace/in", b"w"), folder("tmp", 0o1777),
    file("tmp/in", b"t"), folder("home"), folder("home/sandbox"), file("home/sandbox/in", b"h"),
)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Two of them, in a store of these tests beside the machine images of all."""
    machines = store.default_folder()
    made = Images(tmp_path_factory.mktemp("images"))
    (made.cache / "agentd").mkdir(parents=True)
    os.makedirs(machines, exist_ok=True)
    (made.cache / "agentd/images").symlink_to(machines)
    layout = Layout(made.folder / "layout")
    made.run("pull", layout.add([busybox(*ENTRIES)], CONFIG, tag="node"), "--name", "node")
    made.run("pull", layout.add([busybox(*IN_PLACES)], tag="bare"), "--name", "bare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(made.cache))
        yield made


def said(box: Sandbox, command: str | list[str], **options: Any) -> str:
    return box.run(command, **options).stdout.decode()


def test_all_of_a_sandbox_is_in_the_images_root(images: Images, tmp_path: Path) -> None:
    """No Python, no /tmp; links where agentd mounts; a user of the image's; host folders."""
    (tmp_path / "lent").mkdir()
    (tmp_path / "lent/x").write_text("lent")
    mount = f"{tmp_path}/lent:/l/lent:ro"
    with Sandbox.create(image="node", env={"B": "mine"}, mounts=[mount], **SMALL) as box:
        assert said(box, "pwd; id -u; id -g; echo $A $B $HOME") == (
            "/srv/app\n77\n77\nimage mine /home/sandbox\n"
        )
        assert said(box, ["cat", "/home/node/f", "/srv/lent/x"]) == "fourlent"
        assert said(box, ["stat", "-c", "%a %u", "/set"]) == "4755 0\n"
        assert box.files.read("/home/node/f") == b"four"
        box.files.write("/workspace/a", b"b")
        assert said(box, "cat /workspace/a; echo x > /tmp/x && cat /tmp/x") == "bx\n"
        assert "busybox" in said(box, ["ls", "/bin"]) and "x" not in said(box, "ls /bin").split()
        for path in ("/new", "/srv/app/x", "/bin/x"):
            assert "read-only" in box.run(["touch", path]).stderr.decode().lower()
        assert box.run(["nosuch"]).cause.code == "spawn_failed"
        # Nothing of the machine's own root: by a path, a link, an open directory, another process.
        names = {"bin", "dev", "etc", "home", "l", "proc", "run", "set", "srv", "sys", "tmp", "var"}
        assert {entry.name for entry in box.files.list("/..")} == names | {"workspace"}
        assert set(said(box, "ls /proc/self/root/..").split()) == names | {"workspace"}
        assert not box.run(["ls", "/proc/1/root/"]).ok
        assert not box.run(["cat", "/dev/vda"]).ok
        assert said(box, "cat /etc/hostname").strip() == "sandbox"
        row = images.told("inspect", "node")
        assert f"read-only, of the image node, {row['digest']}" in box.enforcement["root"].detail
        assert box.enforcement["image"].detail == row["digest"]
        touches = "while :; do cat /proc/uptime > /workspace/watched; done"
        with box.start(touches), contextlib.closing(box.files.watch("/workspace")) as changes:
            assert next(changes).path == "/workspace/watched"
        with box.start(["sh", "-c", "test -t 0 && pwd"], pty=(24, 80)) as terminal:
            assert "/srv/app" in "".join(chunk.text for chunk in terminal)


def test_a_writable_root_and_its_copies(images: Images) -> None:
    options = {"image": "node", "writable": True, "user": "root", **SMALL}
    with Sandbox.create(**options) as box:
        with pytest.raises(Unsupported, match="backend qemu cannot commit a sandbox") as refused:
            box.commit("mine")
        assert refused.value.remediation == 'create it with backend="linux"'
        script = "mkdir /new /etc/x && echo b > f && echo c > /bin/c && rm /bin/id && cat f /bin/c"
        assert said(box, script) == "b\nc\n"
        assert not box.run("cat /dev/zero > /new/zero; r=$?; rm /new/zero; exit $r").ok
        assert not box.run("echo x > /dev/vda").ok  # root of its kernel, too
        first = said(box, ["cat", "/etc/machine-id"])
        # An agent that is started again is in the same root, as the same machine.
        assert not box.run("kill -9 $PPID; sleep 100").ok
        state = "pwd; cat f /bin/c /etc/machine-id; ls -d /new; test -e /bin/id || echo none"
        assert said(box, state) == f"/srv/app\nb\nc\n{first}/new\nnone\n"
        box.pause()
        box.resume()
        kept = box.snapshot()
    with kept:
        with Sandbox.create(snapshot=kept) as again:
            state = "pwd; cat f /bin/c; ls -d /new /etc/x"
            assert said(again, state) == "/srv/app\nb\nc\n/etc/x\n/new\n"
            # Blocks of the disk that were not in memory.
            assert again.run(["cat", "/bin/busybox"]).stdout == BUSYBOX.read_bytes()
            assert said(again, ["cat", "/etc/machine-id"]) != first
        source = images.told("inspect", "node")["source"]
        images.run("pull", images.told("inspect", "bare")["source"], "--name", "node")
        try:
            with pytest.raises(Refused, match="is another image now than the one"):
                Sandbox.create(snapshot=kept)
        finally:
            images.run("pull", source, "--name", "node")


def test_by_a_daemon(images: Images, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The command line without a command, and REST; the image is in use as long as they run."""
    daemon = Daemon(tmp_path_factory.mktemp("d"))  # the path of a socket is short
    daemon.start()
    try:
        done = daemon.cli("run", "--backend", "qemu", "--memory", "64M", "--image", "node")
        assert (done.returncode, done.stdout) == (3, b"77\n/srv/app\n"), done
        client = HttpClient(address.parse(daemon.url))
        body = {"backend": "qemu", "isolation": "microvm", "image": "bare", "memory": "64M"}
        view = client.call("POST", "/v1/sandboxes", body, into=dict[str, Any])
        client.close()
        with Sandbox.connect(view["id"], url=daemon.url) as box:
            assert said(box, "id -u; pwd; ls /etc") == (
                "0\n/workspace\nhostname\nhosts\nmachine-id\nresolv.conf\n"
            )
            own = "cd /workspace; echo x >> in; mkdir d; cat in ~/in /tmp/in; stat -c %a /tmp; ls"
            assert said(box, own) == "wx\nht1777\nd\nin\n"
            box.files.write("/tmp/new", b"n")
            assert "1 in use" in images.run("rm", "bare").stderr
            assert box.run(["cat", "/bin/busybox"]).ok
            told = daemon.cli("inspect", view["id"], "--json").stdout
            assert "of the image bare" in json.dumps(json.loads(told))
        assert daemon.cli("kill", view["id"]).returncode == 0
    finally:
        daemon.stop()
    deadline = time.monotonic() + 60
    while images.told("prune")["in_use"]:
        assert time.monotonic() < deadline


def test_what_cannot_be_is_refused_with_the_fix(images: Images) -> None:
    with pytest.raises(NotFound, match=r"agentd image pull docker://nosuch.*agentd image build"):
        Sandbox.create(image="nosuch", **SMALL)
    spec = SandboxSpec(image="node")
    with pytest.raises(Refused, match=r"firecracker takes machine images alone.*--backend qemu"):
        FirecrackerBackend().plan(spec)
    with pytest.raises(Refused, match="written to by its root alone"):
        Sandbox.create(writable=True, user="1000", **SMALL)
