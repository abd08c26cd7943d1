"""Images behind gVisor: without Python, without a libc, and hostile ones."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest
from tests import gvisor
from tests.oci import Images, Layout, busybox, file, folder, link

pytestmark = [pytest.mark.needs("runsc", "skopeo", "umoci"), pytest.mark.timeout(900)]
# In the way of what is mounted, and of what a loader and a runtime read.
HOSTILE = (
    *(link(name, "/etc") for name in ("workspace", "dev", "proc", "sys", "tmp", ".agentd", "run")),
    folder("etc"),
    link("etc/hosts", "/escaped"),
    file("etc/ld.so.preload", b"/evil.so\n"),
    file("etc/group", type=tarfile.FIFOTYPE),
    file("etc/passwd", b"root:x:0:0::/:/bin/sh\nnode:x:77:77::/home/node:/bin/sh\n"),
    file("evil.so", b"\x7fELF no library"),
    link("etc/ssl/cert.pem", "/proc/1/environ"),
    link("etc/ssl/certs/ca-certificates.crt", "../../../../../../../etc/passwd"),
    file("etc/pki/tls/cert.pem", type=tarfile.FIFOTYPE),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """One cache for all: the agent's interpreter is made once."""
    path = tmp_path_factory.mktemp("gvisor-image")
    made, layout = Images(path), Layout(path / "layout")
    config = {"Env": ["GREETING=hello"], "WorkingDir": "/srv", "Cmd": ["id"]}
    made.run("pull", layout.add([busybox()], config, tag="plain"), "--name", "plain")
    config = {"User": "node"}
    made.run("pull", layout.add([busybox(*HOSTILE)], config, tag="hostile"), "--name", "hostile")
    yield made


def run(images: Images, *words: str) -> Any:
    """The answer as JSON."""
    argv = [sys.executable, "-m", "agentd", "run", "--embedded", "--backend", "gvisor", "--json"]
    done = subprocess.run(
        [*argv, *words], env=images.env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_an_image_of_busybox_alone_runs(images: Images) -> None:
    assert run(images, "--image", "plain")["stdout"] == "uid=0 gid=0\n"
    script = "pwd; echo $GREETING; cat /etc/hosts; touch /workspace/a /tmp/b || exit 4; ! touch /c"
    told = run(images, "--image", "plain", "--", "sh", "-c", script)
    assert told["exit_code"] == 0, told
    assert told["stdout"].startswith("/srv\nhello\n127.0.0.1 localhost\n")
    assert "of the image plain" in told["enforcement"]["root"]["detail"]
    (row,) = [row for row in images.told("ls") if row["name"] == "plain"]
    assert told["enforcement"]["image"]["detail"] == row["digest"]


@pytest.mark.skipif(not gvisor.ALL, reason="make test-gvisor asks it")
def test_its_network_is_restricted_to_rules(images: Images) -> None:
    """Busybox asks by itself, at the name server of a resolv.conf that no image has."""
    script = "nslookup example.com; wget -T 60 -O - http://1.1.1.1 || echo refused"
    told = run(images, "--image", "plain", "--net", "pypi", "--", "sh", "-c", script)
    assert "can't find example.com: NXDOMAIN" in told["stdout"], told
    assert "\nrefused\n" in told["stdout"]


def test_its_root_can_be_written_to_and_it_stays_as_it_was(images: Images) -> None:
    script = "touch /made /bin/made && ls /bin/made /made"
    told = run(images, "--image", "plain", "--writable", "--", "sh", "-c", script)
    assert told["stdout"] == "/bin/made\n/made\n", told
    assert told["enforcement"]["root"]["asked"] == "writable"
    told = run(images, "--image", "plain", "--", "test", "-e", "/made")
    assert told["exit_code"] == 1


def test_its_user_owns_what_it_writes(images: Images) -> None:
    script = "id; touch /workspace/a; stat -c %u /workspace/a"
    told = run(images, "--image", "plain", "--user", "1234", "--", "sh", "-c", script)
    assert told["stdout"] == "uid=1234 gid=1234\n1234\n", told


def test_nothing_that_an_image_puts_in_the_way_is_followed(images: Images) -> None:
    script = "id -u; cat /etc/hosts; touch /workspace/a /tmp/b && cat /etc/ld.so.preload; env"
    script += "; cat /.agentd/certificates/bundle.pem"
    words = ("--image", "hostile", "--net", "read example.com/x", "--", "sh", "-c", script)
    told = run(images, *words)
    assert told["exit_code"] == 0, told
    assert "BEGIN CERTIFICATE" in told["stdout"] and "daemon:" not in told["stdout"]
    assert told["stdout"].startswith("77\n127.0.0.1 localhost\n"), told
    assert "/evil.so\n" in told["stdout"]
    assert "LD_" not in told["stdout"] and "PYTHON" not in told["stdout"]
