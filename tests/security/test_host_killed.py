"""Threat: the host process dies by kill -9, at any moment, and its sandboxes live on.

Controls: the zygote is PID 1 of a pid namespace and ends with its host's socket, the kernel ends
the rest; the monitor ends its tree and removes its scratch directory; mounts live in namespaces
that end with their processes; the next agentd removes the cgroups of dead owners.
"""

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentd.model.errors import BackendLost
from agentd.model.spec import ExecRequest
from agentd.sandbox.backends.oci import runtimes

# Builds walls one after the other, each with commands that ignore what can be ignored.
HOST = """
import sys
from agentd.client import build
from agentd.model.spec import ExecRequest
from agentd.sandbox.backends.oci import runtimes
from agentd.sandbox import backends
from agentd.transport.guest import Guest
name, token, many = sys.argv[1], sys.argv[2], int(sys.argv[3])
backend = backends.load(name)
keep = []
print("started", flush=True)
for _ in range(many):
    wall = backend.launch(backend.plan(build.sandbox_spec(backend=name, workspace=WORKSPACE)))
    guest = Guest(wall.open_stream, passes_descriptors=True)
    orphan = f"(setsid sh -c 'trap : TERM; sleep {token}; :' &)"
    script = f"trap '' TERM INT HUP; {orphan}; sleep {token}"
    keep.append((wall, guest, guest.start(ExecRequest(("sh", "-c", script)))))
    keep[-1][2].step(0.2)
    print("wall", wall.pid, flush=True)
sys.stdin.read()
"""
REAP = "from agentd.sandbox.backends.cgroups import own_hierarchy; own_hierarchy()"
GONE_SECONDS = 120.0


@pytest.fixture
def token() -> str:
    """A number of seconds nobody else sleeps."""
    return f"86{int.from_bytes(os.urandom(4)):010d}"


@contextmanager
def _host(backend: str, token: str, folder: Path, workspace: str = "") -> Iterator[Any]:
    code = HOST.replace("WORKSPACE", repr(workspace or None))
    with subprocess.Popen(
        [sys.executable, "-c", code, backend, token, "3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(folder)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _lines(process: Any, count: int) -> list[str]:
    lines: list[str] = []
    for _ in range(count):
        assert select.select([process.stdout], [], [], 20)[0], lines
        lines.append(process.stdout.readline().decode().strip())
    return lines


def _below(root: int) -> dict[int, str]:
    """Pid -> start time of every process below one: what must be gone with it."""
    found: dict[int, str] = {}
    level = [root]
    while level:
        pid = level.pop()
        try:
            listing = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            if pid != root:
                found[pid] = _started(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        level += map(int, listing.split())
    return found


def _started(pid: int) -> str:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _sleepers(token: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if token.encode() in line:
                found.append(int(entry.name))
    return found


def _groups(owner: int) -> list[str]:
    root = Path("/sys/fs/cgroup")
    depths = ("agentd", "*/agentd", "*/*/agentd", "*/*/*/agentd")
    name = re.compile(rf"sbx-{owner}-")
    return [str(g) for d in depths for g in root.glob(f"{d}/sbx-*") if name.match(g.name)]


def _gone(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + GONE_SECONDS
    while condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def folder() -> Iterator[Path]:
    """A TMPDIR that the sandboxes' own user may cross."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)  # noqa: S103 scratch directories in it are closed by themselves
        yield Path(path)


def _need(backend: str) -> None:
    if backend == "oci" and not any(runtimes.find(name) for name in runtimes.RUNTIMES):
        pytest.skip("oci: no runtime is installed")
    if backend == "gvisor" and runtimes.find("runsc") is None:
        pytest.skip("runsc is not installed")


def _nothing_is_left(process: Any, below: dict[int, str], token: str, folder: Path) -> None:
    def alive() -> list[int]:
        same = [pid for pid, start in below.items() if start and _started(pid) == start]
        return same + _sleepers(token)

    assert _gone(alive), alive()
    assert _gone(lambda: list(folder.iterdir())), list(folder.iterdir())
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    subprocess.run([sys.executable, "-c", REAP], check=True, timeout=120)
    assert _groups(process.pid) == []


@pytest.mark.parametrize("backend", ["linux", "oci", "gvisor", "landlock", "host"])
def test_killed_with_its_sandboxes_up(backend: str, token: str, folder: Path) -> None:
    _need(backend)
    before = Path("/proc/self/mountinfo").read_text()
    with _host(backend, token, folder) as process:
        _lines(process, 4)
        below = _below(process.pid)
        # gVisor's processes are none of this kernel's.
        assert backend == "gvisor" or _gone(lambda: len(_sleepers(token)) < 3)
        if backend in {"landlock", "host"}:
            assert len(list(folder.iterdir())) == 3
        process.kill()
        process.wait()
        _nothing_is_left(process, below, token, folder)
    assert Path("/proc/self/mountinfo").read_text() == before


@pytest.mark.parametrize(
    ("backend", "after"),
    [
        *((name, s) for name in ("linux", "landlock") for s in (0, 0.004, 0.02, 0.05, 0.08, 0.11)),
        *(("linux", 0.15), ("landlock", 0.15), ("oci", 0.1), ("oci", 0.3)),
        *(("gvisor", 0.1), ("gvisor", 0.5)),
    ],
)
def test_killed_while_it_builds_them(backend: str, token: str, folder: Path, after: float) -> None:
    _need(backend)
    with _host(backend, token, folder) as process:
        _lines(process, 1)
        time.sleep(after)  # any moment will do: whatever was begun must end
        below = _below(process.pid)
        process.kill()
        process.wait()
        _nothing_is_left(process, below, token, folder)


KEEPING = """
import sys
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox import backends
from agentd.transport.guest import Guest
token, folder = sys.argv[1:]
backend = backends.load("linux")
wall = backend.launch(backend.plan(SandboxSpec()))
guest = Guest(wall.open_stream, passes_descriptors=True)
script = f"head -c 400M /dev/zero | tr '\\\\0' x > a; (setsid sleep {token} &)"
with guest.start(ExecRequest(("sh", "-c", script))) as process:
    process.wait()
print("full", flush=True)
wall.snapshot(folder)
"""


def test_killed_while_it_keeps_the_files_of_one(token: str, folder: Path) -> None:
    """Which may stand still then, and so cannot end by itself."""
    (folder / "state").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", KEEPING, token, str(folder / "state")], stdout=subprocess.PIPE
    ) as process:
        _lines(process, 1)
        below = _below(process.pid)
        assert _sleepers(token)
        while not (folder / "state/content").exists():
            time.sleep(0.001)
        process.kill()
        process.wait()
    subprocess.run([sys.executable, "-c", REAP], check=True, timeout=120)
    for name in ("state/content", "state/entries", "state"):
        path = folder / name
        path.rmdir() if path.is_dir() else path.unlink()
    _nothing_is_left(process, below, token, folder)


def test_a_copy_on_write_workspace_is_as_it_was(token: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with _host("linux", token, folder, f"{tmp_path}:cow") as process:
        _lines(process, 4)
        below = _below(process.pid)
        process.kill()
        process.wait()
        _nothing_is_left(process, below, token, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_host_that_stops_reading_is_not_needed_to_end(token: str, folder: Path) -> None:
    """Stopped is not dead: nothing ends; killed while it is stopped, everything does."""
    with _host("linux", token, folder) as process:
        _lines(process, 4)
        process.send_signal(signal.SIGSTOP)
        below = _below(process.pid)
        assert _sleepers(token)
        process.kill()
        process.wait()
        _nothing_is_left(process, below, token, folder)


# --- its helpers ---


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _lost(box: Any) -> None:
    """The wall is known to be dead, and every use of it says so at once."""
    assert box.wall.wait(120)
    assert not box.wall.alive()
    with pytest.raises(BackendLost):
        box.guest.run(ExecRequest(("true",), timeout=5.0))


@pytest.mark.parametrize("victim", ["zygote", "first process"])
def test_the_zygote_dies_with_its_sandboxes_and_comes_again(
    sandbox: Callable[..., Any], token: str, victim: str
) -> None:
    first, second = sandbox("linux"), sandbox("linux")
    with second.guest.start(ExecRequest(("sleep", token))) as running:
        running.step(5)
        zygote = _parent(first.wall.pid)
        first_process = _parent(zygote)
        started = _started(first_process)
        pid = zygote if victim == "zygote" else first_process
        assert pid not in {1, os.getpid()}
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BackendLost):
            running.wait(120)
    assert _gone(lambda: _sleepers(token))
    _lost(first)
    _lost(second)
    assert _gone(lambda: _started(first_process) == started)
    assert sandbox("linux").run(["echo", "again"]).stdout == "again\n"


def test_the_monitor_dies_and_the_agent_with_it(sandbox: Callable[..., Any], token: str) -> None:
    """At process level orphans are out of reach then: only the agent's own death is promised."""
    box = sandbox("landlock")
    monitor = _parent(box.wall.pid)
    assert monitor not in {1, os.getpid()}
    os.kill(monitor, signal.SIGKILL)
    _lost(box)
    assert sandbox("landlock").run(["echo", "again"]).stdout == "again\n"


def test_nobody_inside_can_kill_the_monitor(sandbox: Callable[..., Any]) -> None:
    box = sandbox("landlock")
    monitor = _parent(box.wall.pid)
    script = "said('kill', tried(os.kill, int(sys.argv[1]), int(sys.argv[2])))"
    for number in (signal.SIGKILL, signal.SIGSTOP, 0):
        assert box.attack(script, str(monitor), str(int(number))) == {"kill": "EPERM"}
    assert box.run(["echo", "on"]).stdout == "on\n"


@pytest.mark.root
def test_without_the_scope_and_the_user_it_is_killed(sandbox: Callable[..., Any]) -> None:
    box = sandbox("landlock", without={"landlock", "identity", "capabilities"})
    script = "said('kill', tried(os.kill, int(sys.argv[1]), 0))"
    assert box.attack(script, str(_parent(box.wall.pid))) == {"kill": "None"}


def test_a_stream_opened_to_a_dead_wall_is_refused(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux")
    os.kill(box.wall.pid, signal.SIGKILL)
    assert box.wall.wait(120)
    with pytest.raises((BackendLost, OSError)):
        stream = box.wall.open_stream()
        with stream:
            stream.settimeout(120)
            if stream.recv(1) == b"":
                raise BackendLost("the stream ended at once")
