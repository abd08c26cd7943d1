"""Images behind walls of OCI runtimes: by the command line, each run a process of its own."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.oci import Images, Layout, busybox, file, folder, link

from agentd.sandbox.backends.oci import runtimes

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]
# In the way of all that is mounted, and of all that a loader or a runtime reads.
HOSTILE = (
    *(link(name, "/etc") for name in ("workspace", "dev", "proc", "sys", "tmp", ".agentd", "run")),
    folder("etc"),
    link("etc/hosts", "/escaped"),
    file("etc/ld.so.preload", b"/evil.so\n"),
    file("etc/group", type=tarfile.FIFOTYPE),  # whoever opens it waits for ever
    file("etc/passwd", b"root:x:0:0::/:/bin/sh\nnode:x:77:77::/home/node:/bin/sh\n"),
    file("evil.so", b"\x7fELF no library"),
    link("etc/ssl/cert.pem", "/proc/1/environ"),
    link("etc/ssl/certs/ca-certificates.crt", "../../../../../../../etc/passwd"),
    file("etc/pki/tls/cert.pem", type=tarfile.FIFOTYPE),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """One cache for all: the agent's interpreter is made once."""
    path = tmp_path_factory.mktemp("oci-image")
    made, layout = Images(path), Layout(path / "layout")
    given = (folder("workspace"), file("workspace/given", b"given\n"))
    config = {"Env": ["GREETING=hello"], "WorkingDir": "/srv", "Cmd": ["id"]}
    made.run("pull", layout.add([busybox(*given)], config, tag="plain"), "--name", "plain")
    config = {"User": "node"}
    made.run("pull", layout.add([busybox(*HOSTILE)], config, tag="hostile"), "--name", "hostile")
    yield made


@pytest.fixture(params=runtimes.RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if runtimes.find(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def run(images: Images, *words: str) -> Any:
    """The answer as JSON."""
    argv = [sys.executable, "-m", "agentd", "run", "--embedded", "--backend", "oci", "--json"]
    done = subprocess.run(
        [*argv, *words], env=images.env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_an_image_without_python_runs_its_own_programs(
    images: Images, runtime: str, tmp_path: Path
) -> None:
    script = "id -u; pwd; echo $GREETING; ls /; touch /new 2>&1; echo x > /workspace/a && cat a"
    told = run(
        images,
        *("--runtime", runtime, "--image", "plain", "-w", f"{tmp_path}:cow"),
        *("--", "sh", "-c", script),
    )
    lines = told["stdout"].splitlines()
    assert lines[:3] == ["0", "/workspace", "hello"]
    assert "usr" not in lines and "root" not in lines  # nothing of the host's
    assert "touch: /new: Read-only file system" in lines
    assert lines[-1] == "x"
    assert told["changes"] == ["A a"]
    assert "of the image plain" in told["enforcement"]["mount_namespace"]["detail"]
    assert run(images, "--runtime", runtime, "--image", "plain")["stdout"] == "uid=0 gid=0\n"


def test_links_and_preloads_of_an_image_lead_nowhere(images: Images, runtime: str) -> None:
    script = "id -u; pwd; echo x > a; cat /proc/1/status | grep Seccomp_filters; cat /etc/hosts"
    script += "; cat /.agentd/certificates/bundle.pem"
    words = ("--image", "hostile", "--net", "read example.com/x", "--", "sh", "-c", script)
    told = run(images, "--runtime", runtime, *words)
    uid, workspace, filters, *hosts = told["stdout"].splitlines()
    # What a link of the image leads to is of the image: its passwd, and not the host's.
    certificates = "\n".join(hosts)
    assert "node:x:77" in certificates and "BEGIN CERTIFICATE" in certificates
    assert "daemon:" not in certificates
    assert (uid, workspace) == ("77", "/workspace")
    assert filters == "Seccomp_filters:\t2"
    assert "127.0.0.1 localhost" in hosts
    assert not os.path.exists("/escaped") and not os.path.exists("/etc/a")


def test_a_writable_image_is_one_sandboxs_alone_and_kept(
    images: Images, runtime: str, tmp_path: Path
) -> None:
    of = ("--runtime", runtime, "--image", "plain", "--writable")
    script = "mkdir /app && echo changed > /bin/own && cat /bin/own /workspace/given"
    script += "; echo more >> /workspace/given"
    kept = tmp_path / "kept"
    told = run(images, *of, "--save-snapshot", str(kept), "--", "sh", "-c", script)
    assert told["stdout"] == "changed\ngiven\n", told
    # Its files of /proc are its own, and no score makes it likelier to be spared than the host is.
    script = "cd /proc/self; cat oom_score_adj; for to in -1 0; do echo $to >oom_score_adj; done"
    told = run(images, *of, "--", "sh", "-c", f"{script}; cat oom_score_adj")
    assert (told["stdout"], told["stderr"].count("Permission denied")) == ("500\n0\n", 1), told
    script = "ls /app; touch /etc/x /y && id -u"
    told = run(images, *of, "--user", "1000", "--", "sh", "-c", script)
    assert (told["stdout"], told["exit_code"]) == ("1000\n", 0), told
    told = run(
        images,
        "--snapshot",
        str(kept),
        "--",
        "sh",
        "-c",
        "ls -d /app; cat /bin/own /workspace/given",
    )
    assert told["stdout"] == "/app\nchanged\ngiven\nmore\n", told
