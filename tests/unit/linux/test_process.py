import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.recording import RecordingKernel

from agentd.linux import abi, process

SOURCES = {"PYTHONPATH": str(Path(process.__file__).parents[2])}


def in_child(code: str, *, user: int | None = None) -> str:
    """What ``code`` prints in a fresh interpreter."""
    head = "import os, signal, subprocess, sys, time\nfrom agentd.linux import process\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=SOURCES,
        user=user,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


@pytest.mark.parametrize(("control", "outcome"), [("process.set_no_new_privs()", "1"), ("", "0")])
def test_no_new_privs(control: str, outcome: str) -> None:
    code = f"{control}\nprint(open('/proc/self/status').read().split('NoNewPrivs:')[1].split()[0])"
    assert in_child(code) == outcome


@pytest.mark.parametrize(("dumpable", "outcome"), [(False, "denied"), (True, "done")])
def test_a_process_that_is_not_dumpable_cannot_be_looked_into(dumpable: bool, outcome: str) -> None:
    # Its own child, of the same uid and without privileges, opens its memory.
    code = f"""
from agentd.linux.kernel import KERNEL
KERNEL.capset(0)
process.set_dumpable({dumpable})
pid = os.fork()
if pid == 0:
    try:
        open(f"/proc/{{os.getppid()}}/mem", "rb").close()
        os.write(1, b"done")
    except PermissionError:
        os.write(1, b"denied")
    os._exit(0)
os.waitpid(pid, 0)
"""
    assert in_child(code) == outcome


# The parent's child sets its death signal, says so, and waits; then the parent dies. What is left
# of the pipe says whether the child died with it.
_ORPHAN = """
ready, child_ready = os.pipe()
pid = os.fork()
if pid == 0:
    {control}
    os.write(child_ready, b"x")
    time.sleep({seconds})
    os.write(int(sys.argv[1]), b"survived")
    os._exit(0)
os.read(ready, 1)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("control", "seconds", "outcome"),
    [("process.set_pdeathsig(signal.SIGKILL)", 60, b""), ("pass", 0.2, b"survived")],
)
def test_the_parents_death_is_the_childs(control: str, seconds: float, outcome: bytes) -> None:
    head = "import os, signal, sys, time\nfrom agentd.linux import process\n"
    code = head + _ORPHAN.format(control=control, seconds=seconds)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            fd = theirs.fileno()
            command = [sys.executable, "-c", code, str(fd)]
            with subprocess.Popen(command, pass_fds=[fd], env=SOURCES) as parent:
                pass
        assert parent.returncode == 0
        ours.settimeout(120)
        assert ours.recv(16) == outcome


# --- pidfd, oom_score_adj ---


def test_the_pid_of_a_pidfd(sleeper: subprocess.Popen[bytes]) -> None:
    fd = os.pidfd_open(sleeper.pid)
    try:
        assert process.pidfd_of_fdinfo(fd) == sleeper.pid
        sleeper.kill()
        sleeper.wait()
        assert process.pidfd_of_fdinfo(fd) == -1
    finally:
        os.close(fd)


def test_a_descriptor_that_is_no_pidfd_is_refused() -> None:
    with open("/dev/null", "rb") as other, pytest.raises(OSError, match="is not a pidfd") as error:
        process.pidfd_of_fdinfo(other.fileno())
    assert error.value.errno == errno.EINVAL


def test_oom_score_adj(sleeper: subprocess.Popen[bytes]) -> None:
    process.oom_score_adj(777, sleeper.pid)
    assert Path(f"/proc/{sleeper.pid}/oom_score_adj").read_text().strip() == "777"
    print_own = "process.oom_score_adj(500); print(open('/proc/self/oom_score_adj').read())"
    assert in_child(print_own) == "500"
    with pytest.raises(ValueError, match="1001"):
        process.oom_score_adj(1001)


# --- descendants ---


def test_children_and_descendants() -> None:
    code = "import os, time\nif os.fork() == 0:\n    print('x', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        (grandchild,) = process.children(child.pid)
        assert child.pid in process.children(os.getpid())
        assert grandchild not in process.children(os.getpid())
        assert set(process.descendants(os.getpid())) >= {child.pid, grandchild}
        os.kill(grandchild, signal.SIGKILL)
        child.kill()


def test_a_process_that_is_gone_has_no_children(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    assert process.children(sleeper.pid) == []


# A tree of orphans, of a new session, and of ones that ignore what can be ignored.
_TREE = """
process.set_child_subreaper()
ready, tell = os.pipe()
def grow(depth):
    for _ in range(2):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if depth:
                grow(depth - 1)
            os.write(tell, b"x")
            if depth == 1:
                os._exit(0)  # its children become orphans
            time.sleep(60)
            os._exit(0)
grow(2)
for _ in range(14):
    os.read(ready, 1)
everyone = set(process.descendants(os.getpid()))
"""


def test_kill_descendants_leaves_none() -> None:
    code = """
print(process.kill_descendants(os.getpid(), time.monotonic() + 120), len(everyone) >= 10)
print([pid for pid in everyone if os.path.exists(f"/proc/{pid}")], process.children(os.getpid()))
"""
    output = in_child(_TREE + code)
    assert output.splitlines() == ["True True", "[] []"]


def test_without_a_subreaper_orphans_get_away() -> None:
    code = """
pid = os.fork()
if pid == 0:
    orphan = os.fork()
    if orphan == 0:
        for fd in (0, 1, 2):
            os.close(fd)
        time.sleep(60)
    os.write(1, str(orphan).encode())
    os._exit(0)
os.waitpid(pid, 0)
process.kill_descendants(os.getpid(), time.monotonic() + 120)
"""
    orphan = int(in_child(code))
    os.kill(orphan, signal.SIGKILL)  # raises if it had been killed


def test_kill_descendants_stops_a_process_that_forks_for_ever() -> None:
    code = """
process.set_child_subreaper()
if os.fork() == 0:
    while True:  # one lives at a time: each forks the next and ends
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            os._exit(1)
print(process.kill_descendants(os.getpid(), time.monotonic() + 120), process.children(os.getpid()))
"""
    assert in_child(code) == "True []"


def test_the_deadline_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "descendants", lambda pid: [2**30])
    monkeypatch.setattr(process, "_reap", lambda: None)
    assert not process.kill_descendants(os.getpid(), time.monotonic())


def test_a_stranger_with_the_number_of_a_descendant_is_spared(
    sleeper: subprocess.Popen[bytes],
) -> None:
    process._kill_in_family(sleeper.pid, {1})
    assert sleeper.poll() is None
    process._kill_in_family(sleeper.pid, {os.getpid()})
    assert sleeper.wait() == -signal.SIGKILL


def test_only_ones_own_descendants() -> None:
    with pytest.raises(ValueError, match="is not this process"):
        process.kill_descendants(1, 0.0)


def test_the_calls_made() -> None:
    kernel = RecordingKernel()
    process.set_no_new_privs(kernel)
    process.set_dumpable(False, kernel)
    process.set_pdeathsig(9, kernel)
    process.set_child_subreaper(True, kernel)
    assert [args[:2] for _, args in kernel.calls] == [
        (abi.PR_SET_NO_NEW_PRIVS, 1),
        (abi.PR_SET_DUMPABLE, 0),
        (abi.PR_SET_PDEATHSIG, 9),
        (abi.PR_SET_CHILD_SUBREAPER, 1),
    ]
