"""Threat: a caller who may mount one folder makes the daemon mount another; a program shortens what
is mounted to be read alone.

Controls: what may be mounted is judged by its path without links, which is then opened without
following any; host folders and the host's network each need a scope.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import running

from agentd.linux import landlock
from agentd.model.errors import InvalidInput
from agentd.model.mount import WORKSPACE, Mount, MountMode
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.process import LandlockBackend

NOBODY, OTHER = 65534, 61234
SECRET = "of root alone"
# As another user: asks for a folder of its own, while a link to the secret one takes its place and
# gives it back as fast as it can; prints each answer's status, and what was read.
RACE = """
import ctypes, http.client, json, os, socket, sys, threading

sock, allowed, secret = sys.argv[1:]
mine = f"{allowed}/mine"
os.makedirs(f"{mine}/folder", exist_ok=True)
open(f"{mine}/folder/secret", "w").write("mine")
os.symlink(secret, f"{mine}/link")
libc = ctypes.CDLL(None)
over = threading.Event()

def flip():
    a, b = f"{mine}/folder".encode(), f"{mine}/link".encode()
    while not over.is_set():
        libc.renameat2(-100, a, -100, b, 2)

class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sock)

def ask(method, path, body=None):
    link = Unix("localhost")
    link.request(method, path, json.dumps(body or {}), {"Content-Type": "application/json"})
    answer = link.getresponse()
    raw = answer.read()
    link.close()
    return answer.status, json.loads(raw) if raw else {}

flipping = threading.Thread(target=flip)
flipping.start()
try:
    for _ in range(60):
        status, made = ask("POST", "/v1/sandboxes", {"workspace": f"{mine}/folder:MODE"})
        text = made.get("code", "")
        if status == 201:
            box = "/v1/sandboxes/" + made["id"]
            ran = ask("POST", f"{box}/exec", {"cmd": ["cat", "/workspace/secret"]})[1]
            text = ran["stdout"]
            ask("DELETE", box)
        print(status, text, flush=True)
finally:
    over.set()
    flipping.join()
"""
CONFIG = """
[sandbox]
mounts = ["{allowed}"]
networks = ["none", "host"]
[[auth.peers]]
uid = {nobody}
scopes = ["create", "run", "read", "mount"]
[policy]
bundle = "none"
"""


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="agentd-host-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        (folder / "allowed").mkdir()
        (folder / "allowed").chmod(0o777)
        (folder / "hidden").mkdir(mode=0o700)
        (folder / "hidden" / "secret").write_text(SECRET)
        yield folder


@pytest.mark.root
@pytest.mark.parametrize("mode", ["ro", "cow"])
def test_a_folder_that_is_swapped_for_a_link_is_not_mounted(
    as_user: Any, place: Path, mode: str
) -> None:
    config = CONFIG.format(allowed=place / "allowed", nobody=NOBODY)
    with running(config) as daemon:
        daemon.folder.chmod(0o755)
        os.chmod(daemon.socket, 0o666)  # noqa: S103 the caller under test is another user
        ran = as_user.python(
            "-c",
            RACE.replace("MODE", mode),
            daemon.socket,
            str(place / "allowed"),
            str(place / "hidden"),
            timeout=120,
        )
    assert ran.returncode == 0, ran.stderr.decode()
    answers = [line.split(" ", 1) for line in ran.stdout.decode().splitlines()]
    assert len(answers) == 60
    assert SECRET not in ran.stdout.decode(), answers
    # What was not refused was the folder itself.
    assert {text for status, text in answers if status == "201"} <= {"mine", ""}
    assert {text for status, text in answers if status != "201"} <= {"refused", "invalid_input"}


@pytest.mark.root
def test_commands_do_not_become_the_owner_of_what_a_link_leads_to(place: Path) -> None:
    """Those of the process wall become the owner of the workspace that they write; who asked for
    one may have put a link there since it was judged."""
    usable = LandlockBackend().probe().usable and identity.available()
    if not usable or landlock.abi_version() < 6:
        pytest.skip("no Landlock that keeps a user's processes apart")
    theirs, link = place / "theirs", place / "allowed" / "link"
    theirs.mkdir()
    os.chown(theirs, OTHER, OTHER)
    link.symlink_to(theirs)
    backend = LandlockBackend()
    plans = [
        SandboxSpec(backend="landlock", mounts=(Mount(str(path), WORKSPACE, MountMode.RW),))
        for path in (theirs, link)
    ]
    assert backend.plan(plans[0]).writer == (OTHER, OTHER)
    with pytest.raises(InvalidInput, match="cannot mount"):
        backend.plan(plans[1])


@pytest.mark.root
def test_the_sandbox_s_changes_go_to_the_folder_that_was_mounted(place: Path) -> None:
    """Not to the one that has its name by then."""
    work = place / "allowed" / "work"
    work.mkdir()
    config = CONFIG.format(allowed=place / "allowed", nobody=NOBODY)
    with running(config) as daemon:
        box = daemon.sandbox(workspace=f"{work}:cow")
        made = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": ["touch", "new"]})
        assert made.json["exit_code"] == 0, made.body
        work.rename(place / "allowed" / "moved")
        work.symlink_to(place / "hidden")
        assert daemon.ask("GET", f"/v1/sandboxes/{box}/changes").json == ["A new"]
        assert daemon.ask("POST", f"/v1/sandboxes/{box}/apply").status == 204
    assert os.listdir(place / "hidden") == ["secret"]
    assert os.listdir(place / "allowed" / "moved") == ["new"]


def test_each_needs_a_scope_by_every_way_in(place: Path) -> None:
    config = CONFIG.format(allowed=place / "allowed", nobody=NOBODY)
    folder = f"{place}/allowed:ro"
    with running(config) as daemon:
        bare = daemon.key("bare", "create", "run", "read", "files", "snapshot")
        both = daemon.key("both", "create", "run", "read", "files", "mount", "net")
        for what, scope in (({"workspace": folder}, "mount"), ({"net": "host"}, "net")):
            for path, body in (
                ("/v1/sandboxes", what),
                ("/v1/run", {"sandbox": what, "exec": {"cmd": ["true"]}}),
                ("/v1/call", {"capability": "shell.exec.v1", "parameters": {"command": "true"}}
                 | {"create": what}),
            ):  # fmt: skip
                refused = daemon.ask("POST", path, body, key=bare)
                assert refused.status == 403, (path, refused.body)
                assert f"scope '{scope}'" in refused.json["message"]
                taken = daemon.ask("POST", path, body, key=both)
                assert taken.status in (200, 201), (path, taken.body)
        made = daemon.cli("create", "-w", folder, key=bare)
        assert made.returncode == 125 and b"scope 'mount'" in made.stderr


#: What shortens a file that may be read, or changes it otherwise, in as many ways as there are.
SHORTEN = """
import fcntl, mmap, os, struct, sys
path = sys.argv[1]
fd = os.open(path, os.O_RDONLY)
ways = {
    "truncate": lambda: os.truncate(path, 1),
    "by its descriptor": lambda: os.truncate(f"/proc/self/fd/{fd}", 1),
    "as it is opened": lambda: os.open(path, os.O_RDONLY | os.O_TRUNC),
    "as it is opened again": lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_TRUNC),
    "ftruncate": lambda: os.ftruncate(fd, 1),
    "mapped": lambda: mmap.mmap(fd, 1, mmap.MAP_SHARED, mmap.PROT_WRITE),
    "flags": lambda: fcntl.ioctl(fd, 0x40086602, struct.pack("l", 0x40)),
}
done = []
for name, way in ways.items():
    try:
        way()
        done.append(name)
    except (OSError, ValueError):  # an empty file cannot be mapped
        pass
print(*done, sep=", ")
"""
AS_USER = """
import sys
from agentd import Sandbox, Unavailable
backend, mode, folder, script = sys.argv[1:]
levels = {"landlock": "process"}
try:
    with Sandbox.create(
        embedded=True, backend=backend, isolation=levels.get(backend, "namespace"),
        workspace=f"{folder}:{mode}",
    ) as box:
        print(box.run(["python3", "-c", script, "file"], check=True).text, end="")
except Unavailable as error:
    print("unavailable", error)
"""


@pytest.mark.parametrize("backend", ["linux", "oci", "gvisor", "landlock"])
def test_what_an_ordinary_user_mounts_to_be_read_is_not_shortened(
    as_user: Any, backend: str
) -> None:
    """The file is the sandbox's own user's, and Landlock lets truncate(2) pass at the namespace
    level: it is the mount that refuses it, and at the process level, without mounts, Landlock."""
    folder = Path(as_user.home, f"folder-{backend}")
    script = (
        f"import os; os.mkdir({str(folder)!r}); open({str(folder / 'file')!r}, 'w').write('x' * 99)"
    )
    assert as_user.python("-c", script).returncode == 0
    ran = as_user.python("-c", AS_USER, backend, "ro", str(folder), SHORTEN)
    if ran.stdout.startswith(b"unavailable"):
        pytest.skip(ran.stdout.decode())
    assert ran.stdout == b"\n", (ran.stdout, ran.stderr.decode())
    assert (folder / "file").read_text() == "x" * 99
    ran = as_user.python("-c", AS_USER, backend, "rw", str(folder), SHORTEN)
    assert b"truncate" in ran.stdout, ran.stderr.decode()
    assert len((folder / "file").read_text()) < 99
