"""Version 2, on directories that look like the kernel's."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from agentd.linux.cgroup import files, v1, v2

MIB = 1 << 20

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
    "pids.current": "3\n",
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
    assert group.tasks() == 3
    assert group.controllers == {"memory", "pids", "cpu"}


def test_v2_limit_of_memory_is_changed_and_room_is_the_least_above(machine: Path) -> None:
    group = v2.V2Hierarchy(str(machine), "user.slice").create("box", memory=32 * MIB)
    box = machine / "agentd" / "box"
    group.limit_memory(64 * MIB)
    assert (box / "memory.max").read_text() == str(64 * MIB)
    (box / "memory.current").write_text(str(48 * MIB))
    with pytest.raises(OSError, match="held"):
        group.limit_memory(32 * MIB)  # the kernel would end a process for it
    (box / "memory.stat").write_text(f"anon 1\ninactive_file {10 * MIB}\nactive_file {8 * MIB}\n")
    group.limit_memory(32 * MIB)  # what the disk has, too, is given up for it
    assert group.memory_room() is None
    (machine / "memory.max").write_text(str(100 * MIB))
    (machine / "memory.current").write_text(str(90 * MIB))
    (machine / "agentd" / "memory.max").write_text(str(60 * MIB))
    assert group.memory_room() == 10 * MIB


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
        assert child.wait(timeout=120) == -signal.SIGKILL
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
