"""Sandboxes of an image that are cloned ahead of the request for them: as those that are not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.oci import Layout, busybox, file, folder

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]

# What of an image would run, or be imported, before its sandbox is confined.
BAIT = b"#!/bin/sh\necho ran > /tmp/ran\necho ran > /workspace/ran\n"
ENTRIES = (
    file("bin/true", BAIT, 0o755),
    folder("app"),
    folder("workspace"),
    file("workspace/seen", b"of the image"),
    folder("tmp", 0o1777),
    file("tmp/seen", b"of the image"),
)
CONFIG = {"WorkingDir": "/app/made", "Env": ["A=image"]}

# Of sandboxes one after the other: until one was born before it was asked for. The start of a
# process is told in ticks since boot.
COMMON = """
import json, os, re, subprocess, sys, time
from agentd import Sandbox

TICKS = os.sysconf("SC_CLK_TCK")

def image(*words):
    subprocess.run([sys.executable, "-m", "agentd", "image", *words], check=True, stdout=2)

def ahead(**options):
    end = time.monotonic() + 120
    while time.monotonic() < end:
        time.sleep(0.05)  # more than a tick or two between the clone and what asks for it
        asked = time.clock_gettime(time.CLOCK_BOOTTIME)
        box = Sandbox.create(backend="linux", embedded=True, **options)
        started = box.run("cat /proc/1/stat", check=True).stdout.decode().rpartition(")")[2]
        if int(started.split()[19]) / TICKS < asked - 0.02:
            return box
        box.close()
    raise SystemExit("none was made ahead")

def facts(box):
    look = (
        "id; pwd; env; cat /proc/mounts; cat /proc/self/limits; cat /proc/1/limits; "
        "grep -E 'Cap|Seccomp|NoNew|Uid|Gid|Groups' /proc/self/status /proc/1/status; "
        "ls -lan / /etc /dev /app /workspace /tmp /var /run /home/sandbox /proc/self/fd | "
        "grep -o '^[^0-9]*[^ ]*$'; cat /workspace/seen /tmp/seen /etc/hosts; "
        "for path in /new /bin/new /tmp/new /workspace/new /app/made/new; do "
        "touch $path && echo wrote $path; done; ls /proc/1/fd; cat /proc/1/environ"
    )
    done = box.run(look)
    # Ids outside are each sandbox's own, and mounts are told in the order of their making.
    said = re.sub(r"[0-9]{9,10}", "ID", (done.stdout + done.stderr).decode()).splitlines()
    return {"said": sorted(said), "controls": str(sorted(box.enforcement.items()))}

def pair(**options):
    with Sandbox.create(backend="linux", embedded=True, **options) as cold:
        first = facts(cold)
    with ahead(**options) as warm:
        return [first, facts(warm)]
"""
ALIKE = """
os.mkdir("lent"); open("lent/x", "w").close()
image("pull", sys.argv[1], "--name", "mine")
asked = [
    {},
    {"writable": True},
    {"user": "1000", "disk": "24M", "env": {"A": "mine"}},
    {"user": "77", "mounts": ["lent:/workspace"]},
]  # each a kind of its own: the first of a kind is cloned for its request
print(json.dumps([pair(image="mine", **options) for options in asked]))
"""
ANEW = """
image("pull", sys.argv[1], "--name", "mine")
with ahead(image="mine") as box:
    seen = [box.run("cat /app/x").stdout.decode()]
image("rm", "mine")
image("pull", sys.argv[1], "--name", "mine")
for source in (None, sys.argv[2]):
    if source:
        image("pull", source, "--name", "mine")
    with Sandbox.create(backend="linux", embedded=True, image="mine") as box:
        seen.append(box.run("cat /app/x").stdout.decode())
    with ahead(image="mine") as box:
        seen.append(box.run("cat /app/x").stdout.decode())
print(json.dumps(seen))
"""


@pytest.fixture(params=["caller", "ordinary"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Run a program with a cache of its own; what it printed."""
    if request.param == "ordinary":
        if os.getuid():
            pytest.skip("the caller is an ordinary user")
        user = request.getfixturevalue("as_user")

        def run(code: str, *words: str) -> Any:
            done = user.python("-c", COMMON + code, *words, timeout=280)
            assert done.returncode == 0, done.stderr.decode()
            return json.loads(done.stdout)

        return run, user.home
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}

    def run(code: str, *words: str) -> Any:
        command = [sys.executable, "-c", COMMON + code, *words]
        done = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, timeout=280, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return run, tmp_path


def test_one_made_ahead_is_as_one_that_is_not(run: Any) -> None:
    start, place = run
    layout = Layout(place / "layout")
    found = start(ALIKE, layout.add([busybox(*ENTRIES)], CONFIG))
    for cold, ahead in found:
        assert cold["said"] == ahead["said"]
        assert cold["controls"] == ahead["controls"]
        assert not any("ran" in line.split() for line in ahead["said"]), "a program of the image's"


def test_an_image_that_is_gone_or_moves_takes_those_of_it_along(run: Any) -> None:
    start, place = run
    layout = Layout(place / "layout")
    sources = [
        layout.add([busybox(folder("app"), file("app/x", text))], tag=text.decode())
        for text in (b"one", b"two")
    ]
    assert start(ANEW, *sources) == ["one", "one", "one", "two", "two"]
