"""Groups for real, on whichever version this machine has; needs uid 0."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.linux import cgroup
from agentd.linux.cgroup import files
from agentd.linux.cgroup.hierarchy import CPU_PERIOD_USEC

MIB = 1 << 20
REAL = cgroup.detect()
real = pytest.mark.skipif(
    REAL is None or bool(REAL.blockers()) or os.geteuid() != 0,
    reason="no cgroup controller that this process may use",
)
real_v1 = pytest.mark.skipif(
    REAL is None or REAL.version != 1 or bool(REAL.blockers()) or os.geteuid() != 0,
    reason="cgroup v1 is not in use here, or not writable",
)
NAME = f"test-{os.getpid()}"
# Waits to be attached, then does what follows.
_GATED = "import os, sys, time\nsys.stdin.readline()\n"


@pytest.fixture
def tree() -> Iterator[cgroup.Hierarchy]:
    assert REAL is not None
    yield REAL
    assert REAL.stale(NAME) == []


def gated(code: str, *words: str) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-c", _GATED + code, *words]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def run_in(group: cgroup.Group, code: str, *words: str) -> tuple[int, bytes]:
    with gated(code, *words) as child:
        group.attach(child.pid)
        output, _ = child.communicate(b"\n", timeout=500)
    return child.returncode, output


BOMB = "data = bytearray(128 << 20)\nprint('survived')"


@real
def test_a_memory_bomb_is_killed_and_counted(tree: cgroup.Hierarchy) -> None:
    group = tree.create(f"{NAME}-memory", memory=32 * MIB)
    try:
        code, output = run_in(group, BOMB)
        assert (code, output) == (-signal.SIGKILL, b"")
        assert group.counters()["oom"] == 1
        assert 16 * MIB < group.usage()["peak_memory_bytes"] <= 32 * MIB
        assert group.controllers == {"memory"}
    finally:
        group.remove()


@real
def test_without_the_limit_the_memory_bomb_survives(tree: cgroup.Hierarchy) -> None:
    group = tree.create(f"{NAME}-no-memory")
    try:
        assert run_in(group, BOMB) == (0, b"survived\n")
        assert group.counters()["oom"] == 0
    finally:
        group.remove()


HOLDS = "data = bytearray(24 << 20)\nprint('holds', flush=True)\nsys.stdin.readline()"


@real
def test_a_limit_of_memory_is_raised_and_never_set_below_what_is_held(
    tree: cgroup.Hierarchy,
) -> None:
    group = tree.create(f"{NAME}-raised", memory=16 * MIB)
    try:
        group.limit_memory(64 * MIB)
        with gated(HOLDS) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            group.attach(child.pid)
            child.stdin.write(b"\n")
            child.stdin.flush()
            assert child.stdout.readline() == b"holds\n"
            with pytest.raises(OSError, match=r"\[Errno 16\]"):
                group.limit_memory(16 * MIB)
            child.communicate(b"\n", timeout=60)
            assert child.returncode == 0
        assert group.counters()["oom"] == 0
        group.limit_memory(16 * MIB)
        assert run_in(group, BOMB) == (-signal.SIGKILL, b"")
    finally:
        group.remove()


FORKS = """
made = 0
for _ in range(30):
    try:
        if os.fork() == 0:
            time.sleep(60)
        made += 1
    except BlockingIOError:
        pass
print(made, flush=True)
time.sleep(60)
"""


@real
@pytest.mark.parametrize(("limit", "made"), [(10, 9), (None, 30)])
def test_a_fork_bomb_is_stopped_counted_and_killed(
    tree: cgroup.Hierarchy, limit: int | None, made: int
) -> None:
    group = tree.create(f"{NAME}-pids", pids=limit)
    try:
        with gated(FORKS) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            group.attach(child.pid)
            child.stdin.write(b"\n")
            child.stdin.flush()
            assert int(child.stdout.readline()) == made
            assert group.counters()["pids"] == 30 - made
            assert len(group.pids()) == made + 1
            assert group.tasks() == made + 1
            assert group.kill()
            assert group.pids() == set()
        assert child.returncode == -signal.SIGKILL
    finally:
        group.remove()


# Until its quota has stopped it that often; what has none ends with 5 s of a processor.
BURNS = """
text = ''
while time.process_time() < 5:
    text = open(sys.argv[1] + '/cpu.stat').read()
    counts = dict(line.split() for line in text.splitlines())
    if int(counts['nr_throttled']) >= 10:
        break
print(text)
"""


@real
def test_the_cpu_quota_holds_and_is_counted(tree: cgroup.Hierarchy) -> None:
    """By the kernel's own count of periods: how fast the machine is says nothing."""
    group = tree.create(f"{NAME}-cpu", cpus=0.1)
    try:
        [directory] = [each for each in group._directories if os.path.exists(f"{each}/cpu.stat")]
        code, output = run_in(group, BURNS, directory)
        assert code == 0
        counts = dict(line.split() for line in output.decode().splitlines() if line)
        assert int(counts["nr_throttled"]) >= 10
        # A tenth of them; what it had before the kernel's next tick stopped it is on top.
        given = int(counts["nr_periods"]) * CPU_PERIOD_USEC
        assert 0 < group.usage()["cpu_usec"] < given / 2
        assert group.controllers == {"cpu"}
    finally:
        group.remove()


@real_v1
def test_what_version_1_is_told(tree: cgroup.Hierarchy) -> None:
    group = tree.create(f"{NAME}-v1", memory=32 * MIB, pids=7, cpus=1.5)
    try:
        written = {
            file: files.read_int(directory, file)
            for directory in group._directories
            for file in (
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                "memory.kmem.tcp.limit_in_bytes",
                "pids.max",
                "cpu.cfs_quota_us",
                "cpu.cfs_period_us",
            )
            if os.path.exists(f"{directory}/{file}")
        }
        assert written.pop("memory.memsw.limit_in_bytes", 32 * MIB) == 32 * MIB
        assert written.pop("memory.kmem.tcp.limit_in_bytes", 4 * MIB) == 4 * MIB
        assert written == {
            "memory.limit_in_bytes": 32 * MIB,
            "pids.max": 7,
            "cpu.cfs_quota_us": 150_000,
            "cpu.cfs_period_us": 100_000,
        }
        assert group.controllers == {"memory", "pids", "cpu"}
    finally:
        group.remove()


@real_v1
def test_groups_are_beneath_the_group_of_this_process(tree: cgroup.Hierarchy) -> None:
    own = {
        controller: line.split(":", 2)[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        for controller in line.split(":", 2)[1].split(",")
    }
    group = tree.create(f"{NAME}-place")
    try:
        with gated("") as child:
            group.attach(child.pid)
            for line in Path(f"/proc/{child.pid}/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                if controllers in ("memory", "pids"):
                    top = own[controllers].rstrip("/")
                    assert path == f"{top}/agentd/{NAME}-place"
    finally:
        group.remove()


TICK = "while True:\n    print('.', flush=True)\n    time.sleep(0.01)"


@real
def test_freeze_stops_and_thaw_resumes(tree: cgroup.Hierarchy) -> None:
    group = tree.create(f"{NAME}-freeze")
    try:
        with gated(TICK) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            group.attach(child.pid)
            child.stdin.write(b"\n")
            child.stdin.flush()
            child.stdout.readline()
            group.freeze()
            os.set_blocking(child.stdout.fileno(), False)
            while child.stdout.read():
                pass
            time.sleep(0.1)
            assert not child.stdout.read()
            os.set_blocking(child.stdout.fileno(), True)
            group.thaw()
            assert child.stdout.readline() == b".\n"
            group.freeze()
            assert group.kill()  # a frozen one too
    finally:
        group.remove()


@real
def test_remove_kills_nested_groups_and_is_idempotent(tree: cgroup.Hierarchy) -> None:
    group = tree.create(f"{NAME}-nested")
    with gated("time.sleep(60)") as child:
        for directory in group._directories:
            os.mkdir(f"{directory}/inner")
            files.write(f"{directory}/inner", "cgroup.procs", child.pid)
        group.remove()
        assert child.wait(timeout=120) == -signal.SIGKILL
    group.remove()
    assert not any(os.path.exists(directory) for directory in group._directories)


@real
def test_stale_groups_are_listed_and_reaped(tree: cgroup.Hierarchy) -> None:
    with gated("time.sleep(60)") as child:
        tree.create(f"{NAME}-stale", pids=5).attach(child.pid)
        assert tree.stale(NAME) == [f"{NAME}-stale"]
        assert tree.stale("other-") == []
        tree.reap(f"{NAME}-stale")
        assert child.wait(timeout=120) == -signal.SIGKILL
    assert tree.stale(NAME) == []
    tree.reap(f"{NAME}-stale")


@real
def test_concurrent_groups_do_not_disturb_each_other(tree: cgroup.Hierarchy) -> None:
    errors: list[BaseException] = []

    def cycle(worker: int) -> None:
        try:
            for turn in range(10):
                tree.create(f"{NAME}-{worker}-{turn}", memory=MIB, pids=3, cpus=1).remove()
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=cycle, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []


@real_v1
def test_a_failure_half_way_leaves_nothing(
    tree: cgroup.Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.write

    def failing(directory: str, name: str, value: int | str) -> None:
        if name == "pids.max":
            raise OSError(28, "no space", directory)
        write(directory, name, value)

    monkeypatch.setattr(files, "write", failing)
    with pytest.raises(OSError, match="no space"):
        tree.create(f"{NAME}-half", memory=MIB, pids=3)
    assert tree.stale(NAME) == []


@real
def test_a_name_that_is_taken_is_refused_and_kept(tree: cgroup.Hierarchy) -> None:
    group = tree.create(f"{NAME}-twice")
    try:
        with pytest.raises(FileExistsError):
            tree.create(f"{NAME}-twice")
        assert tree.stale(NAME) == [f"{NAME}-twice"]
    finally:
        group.remove()


@real
def test_a_process_that_is_gone_cannot_be_attached(tree: cgroup.Hierarchy) -> None:
    group = tree.create(f"{NAME}-gone")
    try:
        with gated("") as child:
            child.communicate(b"\n", timeout=120)
        with pytest.raises(ProcessLookupError):
            group.attach(child.pid)
    finally:
        group.remove()
