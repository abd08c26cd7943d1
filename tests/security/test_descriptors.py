"""Threat: a descriptor or a working directory of the host's, left open inside (CVE-2024-21626).

Controls: agentd's own interpreters start with nothing inherited and close what is above their
sockets; every descriptor is close-on-exec; the agent is not dumpable, so /proc/1/fd is closed; the
host's tree is not below the root, wherever a working directory leads.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import until

from agentd.model.spec import ExecRequest

SECRET = "kept by the host"
# What a process inside may hold besides sockets, pipes and the kernel's nameless files.
HARMLESS = ("/dev/null", "/dev/pts/", "/dev/ptmx")
ATTACK = """
depth, secret = "../" * 12, sys.argv[1].lstrip("/")
found = []
for number in range(256):
    for path in (f"/proc/self/fd/{number}", f"/dev/fd/{number}"):
        try:
            os.chdir(path)
            found.append(path)
        except OSError:
            continue
        for way in (depth + secret, "/" + secret, "./" + secret):
            if opens(way) == "opened":
                said("secret", path)
said("inherited", sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else "none")
said("found", found)
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A file of the host's; it and its directory are inheritable, as by a careless host."""
    tmp_path.joinpath("secret").write_text(SECRET)
    fds = [os.open(tmp_path, os.O_RDONLY), os.open(tmp_path / "secret", os.O_RDWR)]
    for fd in fds:
        os.set_inheritable(fd, True)
    yield tmp_path / "secret"
    for fd in fds:
        os.close(fd)


def _processes(wall: Any) -> list[int]:
    """The host's pids of all that runs behind a wall: the agent and below, and its monitor."""
    pids = [wall.pid]
    parent = int(Path(f"/proc/{wall.pid}/stat").read_text().rpartition(")")[2].split()[1])
    pids.append(parent)
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pids += [int(child) for child in below if int(child) not in pids]
    return pids


def _foreign(pid: int) -> list[str]:
    """Open files and directories of a process that are neither harmless nor of its own mounts."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith("/") and not target.startswith(HARMLESS):
            found.append(f"{pid}: {fd} -> {target}")
    return found


@pytest.mark.root
@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("cow", [False, True], ids=["plain", "cow"])
def test_no_process_inside_holds_a_file_of_the_host(
    sandbox: Callable[..., Any], walled: str, cow: bool, tmp_path: Path
) -> None:
    if cow and walled == "landlock":
        pytest.skip("landlock: a copy-on-write workspace takes a mount namespace")
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    box = sandbox(walled, workspace=f"{workspace}:cow") if cow else sandbox(walled)
    with box.guest.start(_sleep(box)) as running:
        while running.pid is None:
            running.step(1)
        assert len(_processes(box.wall)) >= 3
        # What a program reads as it starts it closes again; what it was given stays open. One look
        # with nothing is enough: the program may only then begin to read.
        found: list[str] = []

        def holds_none() -> bool:
            found[:] = _held(box.wall)
            return not found

        with contextlib.suppress(AssertionError):
            until(holds_none)
        assert len(_processes(box.wall)) >= 3
        running.kill()
        running.wait()
    assert found == []


def _held(wall: Any) -> list[str]:
    found = [line for pid in _processes(wall) for line in _foreign(pid)]
    # The agent sets its own score with it, and no command inherits it. Where it has left the root
    # for an image's, the /proc that it was opened in is mounted nowhere.
    own = re.compile(rf"{wall.pid}: \d+ -> (/proc)?/\d+/oom_score_adj")
    return [line for line in found if not own.fullmatch(line)]


@pytest.mark.root
@pytest.mark.usefixtures("held")
def test_one_that_is_inherited_would_be_seen() -> None:
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        close_fds=False,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = _foreign(process.pid)
        process.communicate()
    assert any(line.endswith("/secret") for line in found)


def _sleep(box: Any) -> Any:
    return ExecRequest(("sleep", "300"), cwd=box.workspace, timeout=300.0)


def test_a_command_inherits_three_descriptors(sandbox: Callable[..., Any], held: Path) -> None:
    said = sandbox("linux").attack(ATTACK, str(held))
    assert said["inherited"] == "['0', '1', '2', '3']"  # the last is the listing's own
    assert "secret" not in said
    assert said["found"] == "[]"


def test_no_working_directory_leads_out(
    sandbox: Callable[..., Any], enclosed: str, held: Path
) -> None:
    """``cwd`` is what CVE-2024-21626 was asked with: a descriptor of the starter."""
    box = sandbox(enclosed)
    script = 'cat "../../../../../../../../../../$1" "./$1" 2>/dev/null; pwd'
    places = [f"/proc/self/fd/{n}" for n in range(24)]
    places += [f"/proc/1/{n}" for n in ("cwd", "root", "fd/3", "fd/4")]
    places += [f"/proc/{os.getpid()}/cwd", f"/proc/{os.getpid()}/root", str(held.parent)]
    for place in places:
        ran = box.run(["sh", "-c", script, "sh", str(held)], cwd=place)
        assert SECRET not in ran.stdout, place
        # The agent's own root is the sandbox's: to enter it is no way out.
        entered = ran.stdout.splitlines()
        assert ran.exit.cause.code == "spawn_failed" or entered == ["/"], f"{place}: {entered}"


@pytest.mark.usefixtures("held")
def test_without_dumpable_the_agents_descriptors_are_seen(sandbox: Callable[..., Any]) -> None:
    script = "said('seen', tried(os.listdir, '/proc/1/fd'))"
    assert sandbox("linux").attack(script)["seen"] == "EACCES"
    said = sandbox("linux", without={"dumpable"}).attack(script)
    assert said["seen"].startswith("['0', '1', '2'")


def test_a_wall_that_shares_the_hosts_tree_would_give_the_file(
    sandbox: Callable[..., Any], held: Path
) -> None:
    ran = sandbox("host").run(["cat", "./secret"], cwd=str(held.parent))
    assert ran.stdout == SECRET
