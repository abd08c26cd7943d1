"""Version 1 for real where it is mounted; version 2 on directories that look like the kernel's."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.linux import cgroup
from agentd.linux.cgroup import files, hierarchy, v1, v2

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


def gated(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", _GATED + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def run_in(group: cgroup.Group, code: str) -> tuple[int, bytes]:
    with gated(code) as child:
        group.attach(child.pid)
        output, _ = child.communicate(b"\n", timeout=30)
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
            assert group.kill()
            assert group.pids() == set()
        assert child.returncode == -signal.SIGKILL
    finally:
        group.remove()


@real
def test_the_cpu_quota_holds_and_is_counted(tree: cgroup.Hierarchy) -> None:
    group = tree.create(f"{NAME}-cpu", cpus=0.1)
    burn = "end = time.monotonic() + 0.5\nwhile time.monotonic() < end: pass\n"
    burn += "print(time.process_time())"
    try:
        code, output = run_in(group, burn)
        assert code == 0
        assert float(output) < 0.4  # of 0.5 s on the clock: a tenth, and a period's grace
        assert 0 < group.usage()["cpu_usec"] < 400_000
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
                "pids.max",
                "cpu.cfs_quota_us",
                "cpu.cfs_period_us",
            )
            if os.path.exists(f"{directory}/{file}")
        }
        assert written.pop("memory.memsw.limit_in_bytes", 32 * MIB) == 32 * MIB
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
        assert child.wait(timeout=30) == -signal.SIGKILL
    group.remove()
    assert not any(os.path.exists(directory) for directory in group._directories)


@real
def test_stale_groups_are_listed_and_reaped(tree: cgroup.Hierarchy) -> None:
    with gated("time.sleep(60)") as child:
        tree.create(f"{NAME}-stale", pids=5).attach(child.pid)
        assert tree.stale(NAME) == [f"{NAME}-stale"]
        assert tree.stale("other-") == []
        tree.reap(f"{NAME}-stale")
        assert child.wait(timeout=30) == -signal.SIGKILL
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
            child.communicate(b"\n", timeout=30)
        with pytest.raises(ProcessLookupError):
            group.attach(child.pid)
    finally:
        group.remove()


# --- version 2, on look-alike directories ---

EMPTY = {
    "cgroup.procs": "",
    "cgroup.controllers": "cpu memory pids",
    "cgroup.subtree_control": "",
    "cgroup.kill": "",
    "cgroup.freeze": "0",
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.current": "4096",
    "memory.peak": "8192",
    "memory.events": "low 0\noom 3\noom_kill 2\n",
    "pids.max": "max",
    "pids.events": "max 5\n",
    "cpu.max": "max 100000",
    "cpu.stat": "usage_usec 1234\nuser_usec 1000\n",
}


def make_look_alike(path: str) -> None:
    os.mkdir(path)
    populate(Path(path))
    (Path(path) / "cgroup.type").write_text("domain")


def populate(path: Path) -> None:
    for name, text in EMPTY.items():
        (path / name).write_text(text)


def remove_look_alike(path: str) -> None:
    if any(entry.is_dir() for entry in os.scandir(path)):
        raise OSError(16, "busy", path)
    shutil.rmtree(path)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The top of a v2 tree of a whole machine, seen by root."""
    monkeypatch.setattr(files, "make_dir", make_look_alike)
    monkeypatch.setattr(files, "remove_dir", remove_look_alike)
    populate(tmp_path)
    return tmp_path


def test_v2_limits_counters_and_usage(machine: Path) -> None:
    group = v2.V2Hierarchy(str(machine), "user.slice").create(
        "box", memory=32 * MIB, pids=7, cpus=1.5
    )
    box = machine / "agentd" / "box"
    assert (machine / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (machine / "agentd" / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (box / "memory.max").read_text() == str(32 * MIB)
    assert (box / "memory.swap.max").read_text().startswith("0")
    assert (box / "pids.max").read_text().startswith("7")
    assert (box / "cpu.max").read_text().startswith("150000 100000")
    assert group.counters() == {"oom": 2, "pids": 5}
    assert group.usage() == {"memory_bytes": 4096, "peak_memory_bytes": 8192, "cpu_usec": 1234}
    assert group.controllers == {"memory", "pids", "cpu"}


def test_v2_freeze_kill_and_remove(machine: Path) -> None:
    tree = v2.V2Hierarchy(str(machine), "")
    group = tree.create("box")
    box = machine / "agentd" / "box"
    group.freeze()
    assert (box / "cgroup.freeze").read_text() == "1"
    group.thaw()
    assert (box / "cgroup.freeze").read_text() == "0"
    assert group.kill()
    assert (box / "cgroup.kill").read_text() == "1"
    assert tree.stale("b") == ["box"]
    group.remove()
    assert not (machine / "agentd").exists()


def test_v2_without_cgroup_kill_signals_each_member(machine: Path) -> None:
    group = v2.V2Hierarchy(str(machine), "").create("box")
    box = machine / "agentd" / "box"
    (box / "cgroup.kill").unlink()
    with subprocess.Popen(["sleep", "60"]) as child:
        (box / "cgroup.procs").write_text(f"0\n{child.pid}\n")
        group._start_kill()
        assert group._kill_members()
        assert child.wait(timeout=30) == -signal.SIGKILL
    assert (box / "pids.max").read_text().startswith("0")


def test_v2_a_failure_half_way_leaves_nothing(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_without_pids(path: str) -> None:
        make_look_alike(path)
        os.unlink(f"{path}/pids.max")

    monkeypatch.setattr(files, "make_dir", make_without_pids)
    with pytest.raises(FileNotFoundError):
        v2.V2Hierarchy(str(machine), "").create("box", memory=MIB, pids=3)
    assert not (machine / "agentd").exists()


def test_v2_a_container_moves_its_processes_to_a_leaf(machine: Path) -> None:
    (machine / "cgroup.type").write_text("domain")
    tree = v2.V2Hierarchy(str(machine), ".")
    (machine / "cgroup.procs").write_text("")
    assert tree.blockers() == []
    moved: list[int] = []
    write = files.write

    def kernel(directory: str, name: str, value: int | str) -> None:
        if directory == f"{machine}/{v2.LEAF}" and name == "cgroup.procs":
            moved.append(int(value))
            (machine / "cgroup.procs").write_text("")
        else:
            write(directory, name, value)

    (machine / "cgroup.procs").write_text("41\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write", kernel)
        tree.create("box", memory=MIB)
    assert moved == [41]
    # Seen again from the leaf, the same place is found.
    assert v2.V2Hierarchy(str(machine), v2.LEAF)._parents() == [f"{machine}/agentd"]


def test_v2_a_group_that_is_not_ours_is_a_blocker(machine: Path) -> None:
    (machine / "cgroup.type").write_text("domain")
    foreign = machine / "session.scope"
    make_look_alike(str(foreign))
    tree = v2.V2Hierarchy(str(machine), "session.scope")
    if os.geteuid() == 0:
        assert "Delegate=yes" in tree.blockers()[0]
    os.setxattr(foreign, "user.delegate", b"1")
    tree = v2.V2Hierarchy(str(machine), "session.scope")
    assert tree.blockers() == []
    assert tree._parents() == [f"{foreign}/agentd"]


def test_a_limit_without_its_controller_is_not_claimed(machine: Path) -> None:
    (machine / "cgroup.controllers").write_text("pids")
    group = v2.V2Hierarchy(str(machine), "").create("box", memory=MIB, pids=3)
    assert group.controllers == {"pids"}
    assert (machine / "agentd" / "box" / "memory.max").read_text() == "max"


def test_not_writable_says_who_and_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (text,) = v1.V1Hierarchy({"memory": "/x/memory"}).blockers()
    assert text.startswith("/x/memory is not writable by uid 1000: run as root")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "x" * 129, "-x", "a b", "a\n"])
def test_names_that_could_lead_elsewhere_are_refused(machine: Path, name: str) -> None:
    tree = v2.V2Hierarchy(str(machine), "")
    with pytest.raises(ValueError, match="cgroup name"):
        tree.create(name)
    with pytest.raises(ValueError, match="cgroup name"):
        tree.reap(name)


@pytest.mark.parametrize("limits", [{"memory": 0}, {"pids": -1}, {"cpus": 0.0}])
def test_a_limit_that_is_not_above_0_is_refused(machine: Path, limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is not above 0"):
        v2.V2Hierarchy(str(machine), "").create("box", **limits)


# --- detection ---


def mount_line(point: str, kind: str, options: str, root: str = "/") -> str:
    return f"31 23 0:28 {root} {point} rw,relatime shared:4 - {kind} {kind} {options}\n"


def test_v2_is_preferred_when_it_has_controllers(machine: Path) -> None:
    mounts = mount_line("/v1/memory", "cgroup", "rw,memory") + mount_line(
        str(machine), "cgroup2", "rw,nsdelegate"
    )
    found = cgroup.detect(mounts, "4:memory:/a\n0::/\n")
    assert found is not None
    assert (found.version, found.controllers) == (2, {"memory", "pids", "cpu"})


def test_an_empty_v2_gives_way_to_v1(machine: Path) -> None:
    (machine / "cgroup.controllers").write_text("hugetlb\n")
    mounts = (
        mount_line(str(machine), "cgroup2", "rw")
        + mount_line("/v1/cpu\\040acct", "cgroup", "rw,cpu,cpuacct")
        + mount_line("/v1/memory", "cgroup", "rw,memory", root="/docker/1")
        + mount_line("/v1/pids", "cgroup", "rw,pids")
    )
    own = "4:memory:/docker/1/sub\n8:pids:/\n1:cpu,cpuacct:/c:d\n0::/\n"
    found = cgroup.detect(mounts, own)
    assert found is not None
    assert found.controllers == {"memory", "pids", "cpu"}
    assert list(found._parents()) == [
        "/v1/memory/sub/agentd",
        "/v1/pids/agentd",
        "/v1/cpu acct/c:d/agentd",
    ]


def test_nothing_mounted_is_none() -> None:
    assert cgroup.detect(mount_line("/", "ext4", "rw"), "0::/\n") is None


def test_a_group_that_the_mount_does_not_show_is_its_top() -> None:
    assert v1.base_of("/m", "/docker/1", "/docker/2") == "/m"
    assert v1.base_of("/m", "/docker/1", "/docker/1") == "/m"
    assert v1.base_of("/m", "/", "/../x") == "/m/x"


def test_the_least_quota() -> None:
    assert hierarchy.cpu_quota(0.001) == 1000
    assert hierarchy.cpu_quota(2) == 200_000
