"""Containers that are started ahead of the request for them: as those that are not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.oci import Layout, busybox, file, folder

from agentd.linux import cgroup

pytestmark = pytest.mark.timeout(900)

# Sandboxes one after the other until one was started before it was asked for: told by the host's
# clock, which is read in it, or by that of gVisor's kernel, which begins with the sandbox.
COMMON = """
import json, os, re, signal, subprocess, sys, time
from agentd import Sandbox

TICKS = os.sysconf("SC_CLK_TCK")

def image(*words):
    subprocess.run([sys.executable, "-m", "agentd", "image", *words], check=True, stdout=2)

def begun(box):
    if box.info.backend == "gvisor":
        up = float(box.run("cat /proc/uptime", check=True).text.split()[0])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - up
    said = box.run("cat /proc/1/stat", check=True).text.rpartition(")")[2]
    return int(said.split()[19]) / TICKS

def ahead(**options):
    pause, end = 0.4, time.monotonic() + 200
    while time.monotonic() < end:
        time.sleep(pause)  # none is started while sandboxes are asked for
        pause *= 1.5
        asked = time.clock_gettime(time.CLOCK_BOOTTIME)
        box = Sandbox.create(embedded=True, **options)
        if begun(box) < asked - 0.03:
            return box
        box.close()
    raise SystemExit("none was started ahead")

def facts(box):
    look = (
        "id; pwd; env; cat /proc/mounts; cat /proc/self/limits; ulimit -a; "
        "grep -E 'Cap|Seccomp|NoNew|Uid|Gid|Groups' /proc/self/status /proc/1/status; "
        "ls -lan / /etc /dev /workspace /tmp /var /run /home/sandbox /proc/self/fd | "
        "grep -o '^[^0-9]*[^ ]*$'; cat /workspace/seen /tmp/seen /etc/hosts; "
        "for path in /new /bin/new /tmp/new /workspace/new; do "
        "touch $path && echo wrote $path; done; cat /proc/1/environ; "
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"
    )
    done = box.run(look)
    # Ids outside and numbers of processes are each sandbox's own.
    said = re.sub(r"[0-9]{9,10}|/proc/[0-9]+", "N", (done.stdout + done.stderr).decode())
    return {"said": sorted(said.splitlines()), "controls": str(sorted(box.enforcement.items()))}

def pair(**options):
    with Sandbox.create(embedded=True, **options) as cold:
        first = facts(cold)
    with ahead(**options) as warm:
        return [first, facts(warm)]

OPTIONS = json.loads(sys.argv[1])
"""
ALIKE = """
memory = {} if os.getuid() else {"memory": "96M"}
asked = [{"disk": "24M", "user": "77", "env": {"MINE": "1"}, **memory}]
if len(sys.argv) > 2:
    image("pull", sys.argv[2], "--name", "mine")
    asked = [{"image": "mine", "writable": True}]
print(json.dumps([pair(**OPTIONS, **options) for options in asked]))
"""
OTHERS = """
with ahead(**OPTIONS, env={"SECRET": "of another"}):
    pass
with ahead(**OPTIONS, env={"MINE": "1"}) as box:
    print(json.dumps(box.run("env; cat /proc/1/environ").stdout.decode()))
"""
ANEW = """
seen = []
for source in sys.argv[2:]:
    image("pull", source, "--name", "mine")
    with Sandbox.create(embedded=True, image="mine", **OPTIONS) as box:
        seen.append(box.run("cat /app/x").text)
    with ahead(image="mine", **OPTIONS) as box:
        seen.append(box.run("cat /app/x").text)
    image("rm", "mine")
print(json.dumps(seen))
"""
# Two ports of this machine, of which a request has one.
RULES = """
import socket, threading

def serve(server):
    while True:
        server.accept()[0].close()

servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
for server in servers:
    threading.Thread(target=serve, args=(server,), daemon=True).start()
ports = [str(server.getsockname()[1]) for server in servers]
DIAL = '''
import socket, sys
for port in sys.argv[1:]:
    try:
        socket.create_connection(("host.agentd.internal", int(port)), 30).recv(1)
        print("granted")
    except OSError:
        print("denied")
'''
seen = []
for port in ports:
    with ahead(**OPTIONS, net=[f"host.agentd.internal:{port}"]) as box:
        seen.append(box.run(["python3", "-c", DIAL, *ports], check=True).text.split())
print(json.dumps(seen), flush=True)
"""
# The next one is on its way, or there, when its owner dies.
KILLED = """
box = ahead(**OPTIONS)
print(json.dumps(os.getpid()), flush=True)
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
WALLS: dict[str, dict[str, str]] = {
    "runc": {"backend": "oci", "runtime": "runc"},
    "crun": {"backend": "oci", "runtime": "crun"},
    "runsc": {"backend": "gvisor"},
}
Start = Callable[..., Any]


def of_walls(*names: str) -> pytest.MarkDecorator:
    """Runs a test with each of these that is here; what all do alike is asked of one or two."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    return pytest.mark.parametrize(
        "wall",
        [
            pytest.param(
                WALLS[name],
                id=name,
                marks=pytest.mark.skipif(
                    shutil.which(name, path=path) is None, reason=f"{name} is not installed"
                ),
            )
            for name in names
        ],
    )


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Runs a program with a cache of its own; what it printed."""
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}

    def start(code: str, *words: object, ends: int = 0) -> Any:
        argv = [sys.executable, "-c", COMMON + code, json.dumps(words[0]), *map(str, words[1:])]
        done = subprocess.run(
            argv, env=env, cwd=tmp_path, capture_output=True, timeout=280, check=False
        )
        assert done.returncode == ends, done.stderr.decode()
        return json.loads(done.stdout)

    return start


def same(pairs: Any) -> None:
    for cold, ahead in pairs:
        assert cold["said"] == ahead["said"]
        assert cold["controls"] == ahead["controls"]


@of_walls("runc", "crun", "runsc")
def test_one_started_ahead_is_as_one_that_is_not(start: Start, wall: dict[str, str]) -> None:
    same(start(ALIKE, wall))


@of_walls("crun", "runsc")
@pytest.mark.needs("skopeo", "umoci")
def test_one_of_an_image_is_as_one_that_is_not(
    start: Start, wall: dict[str, str], tmp_path: Path
) -> None:
    entries = folder("workspace"), file("workspace/seen", b"of it"), folder("tmp", 0o1777)
    source = Layout(tmp_path / "layout").add([busybox(*entries)], {"Env": ["A=image"]})
    same(start(ALIKE, wall, source))


@of_walls("crun", "runsc")
def test_an_ordinary_users_is_as_one_that_is_not(as_user: Any, wall: dict[str, str]) -> None:
    done = as_user.python("-c", COMMON + ALIKE, json.dumps(wall), timeout=280)
    assert done.returncode == 0, done.stderr.decode()
    same(json.loads(done.stdout))


@of_walls("runc")
def test_nothing_of_one_request_is_in_what_another_gets(start: Start, wall: dict[str, str]) -> None:
    said = start(OTHERS, wall)
    assert "MINE=1" in said
    assert "SECRET" not in said


@of_walls("crun", "runsc")
def test_the_rules_of_a_network_are_those_of_the_request(
    start: Start, wall: dict[str, str]
) -> None:
    assert start(RULES, wall) == [["granted", "denied"], ["denied", "granted"]]


@of_walls("crun")
@pytest.mark.needs("skopeo", "umoci")
def test_an_image_that_moves_takes_those_of_it_along(
    start: Start, wall: dict[str, str], tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "layout")
    sources = [
        layout.add([busybox(folder("app"), file("app/x", text))], tag=text.decode())
        for text in (b"one", b"two")
    ]
    assert start(ANEW, wall, *sources) == ["one", "one", "two", "two"]


@of_walls("crun", "runsc")
@pytest.mark.root
def test_one_whose_owner_is_killed_ends(start: Start, wall: dict[str, str]) -> None:
    owner = start(KILLED, wall, ends=-signal.SIGKILL)
    hierarchy = cgroup.detect()
    if hierarchy is None or hierarchy.blockers():
        pytest.skip("there are no control groups to find its processes by")
    run = [sys.executable, "-m", "agentd", "run", "--embedded", "--", "true"]
    deadline = time.monotonic() + 60
    while left := [name for name in hierarchy.stale("sbx-") if name.split("-")[1] == str(owner)]:
        assert time.monotonic() < deadline, left
        subprocess.run(run, check=True, timeout=120)  # the next agentd removes them
