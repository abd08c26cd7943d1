"""Threat: what the host mounts after a sandbox was made, beneath a folder that it shows.

A mount that comes along by itself (mount_namespaces(7): shared subtrees) is none that agentd made:
writable beneath a read-only folder, with devices and set-id programs. Each test has a mount
namespace of its own in which, as on most machines, all mounts are shared.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.root

# Its arguments: the folder, the options of the sandbox. It waits for a line on stdin.
HOST = """
import json, sys
from agentd import Sandbox
folder, options = sys.argv[1], json.loads(sys.argv[2])
ATTACK = '''
import json, os, sys
later, said = sys.argv[1], {}
def tried(name, action, *args):
    try:
        said[name] = repr(action(*args))
    except OSError as error:
        said[name] = type(error).__name__
tried("read", lambda: open(f"{later}/file").read())
tried("write", lambda: open(f"{later}/file", "a").write("x"))
tried("times", os.utime, f"{later}/file")
tried("make", os.mkdir, f"{later}/made")
print(json.dumps(said))
'''
with Sandbox.create(**options) as sandbox:
    print("ready", flush=True)
    sys.stdin.readline()
    later = "/workspace/later" if "workspace" in options else f"{folder}/later"
    ran = sandbox.run(["python3", "-I", "-c", ATTACK, later])
    print((ran.stdout or ran.stderr).decode().strip(), flush=True)
"""
# Its arguments: the folder, its owner, what starts HOST, the sandbox's options.
OUTSIDE = """
import json, os, subprocess, sys
folder, owner = sys.argv[1:3]
host, options = json.loads(sys.argv[3]), json.loads(sys.argv[4])
def sh(*argv):
    subprocess.run(argv, check=True)
sh("mount", "--make-rshared", "/")
sh("mount", "-t", "tmpfs", "-o", f"mode=0755,uid={owner},gid={owner}", "folder", folder)
sh("mount", "--make-shared", folder)
os.mkdir(folder + "/later")
if "workspace" in options:
    options["workspace"] = folder + options["workspace"]
with subprocess.Popen([*host, folder, json.dumps(options)], stdin=subprocess.PIPE,
                      stdout=subprocess.PIPE, text=True) as child:
    assert child.stdout.readline() == "ready\\n"
    later = folder + "/later"
    sh("mount", "-t", "tmpfs", "-o", "mode=1777", "later", later)
    file = os.open(later + "/file", os.O_CREAT | os.O_WRONLY)
    os.fchmod(file, 0o666)
    os.utime(file, (1, 1))
    said, _ = child.communicate("\\n", timeout=120)
print(json.dumps({
    "said": json.loads(said),
    "names": os.listdir(later),
    "size": os.stat(file).st_size,
    "time": os.stat(file).st_mtime,
}))
"""


@pytest.fixture(params=["root", "user"])
def who(request: pytest.FixtureRequest) -> tuple[int, list[str]]:
    """Who runs agentd, and how it is started."""
    host = [sys.executable, "-c", HOST]
    if request.param == "root":
        return 0, host
    user = request.getfixturevalue("as_user")
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "-i"]
    host[0] = os.path.realpath(sys.executable)
    return 65534, [*drop, *(f"{name}={value}" for name, value in user.env.items()), *host]


def tried(who: tuple[int, list[str]], folder: str = "/mnt", **options: Any) -> dict[str, str]:
    """What an attack met in a mount that was made in the folder later; it has harmed nothing."""
    argv = ["unshare", "--mount", sys.executable, "-c", OUTSIDE, folder, str(who[0])]
    argv += [json.dumps(who[1]), json.dumps(options)]
    ran = subprocess.run(argv, capture_output=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    found = json.loads(ran.stdout)
    assert (found["names"], found["size"], found["time"]) == (["file"], 0, 1), found
    said: dict[str, str] = found["said"]
    assert set(said) == {"read", "write", "times", "make"}
    return said


@pytest.mark.parametrize("mode", ["ro", "rw", "cow"])
def test_nothing_comes_into_a_folder_later(who: tuple[int, list[str]], mode: str) -> None:
    assert tried(who, backend="linux", workspace=f":{mode}")["read"] == "FileNotFoundError"


def test_nothing_comes_into_the_programs_later(who: tuple[int, list[str]]) -> None:
    assert tried(who, "/usr/src", backend="linux")["read"] == "FileNotFoundError"


@pytest.mark.parametrize("options", [{}, {"workspace": ":ro"}])
def test_at_the_process_level_nothing_mounted_later_is_changed(
    who: tuple[int, list[str]], options: dict[str, str]
) -> None:
    tried(who, backend="landlock", **options)
