"""What a real version 2 kernel does with the groups that agentd makes. Values go to the host."""

import mmap
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from agentd.linux import cgroup

TOP = Path("/sys/fs/cgroup")
MIB = 1 << 20
Facts = dict[str, Any]


def tree() -> cgroup.Hierarchy:
    found = cgroup.detect()
    assert found is not None
    return found


@contextmanager
def grouped(name: str, **limits: Any) -> Iterator[cgroup.Group]:
    group = tree().create(name, **limits)
    try:
        yield group
    finally:
        group.remove()


def path_of(name: str) -> Path:
    return TOP / "agentd" / name


def read(path: Path) -> str:
    return path.read_text().strip()


def fields(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {name: int(number) for name, number in pairs}


def child(group: cgroup.Group | None, work: Callable[[], object]) -> int:
    """A forked process that starts to work once it is in the group; its exit code is 0."""
    go, gone = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(gone)
        os.read(go, 1)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    os.close(go)
    try:
        if group is not None:
            group.attach(pid)
    finally:
        os.close(gone)
    return pid


def wait(pid: int) -> int:
    """Exit code, or the negative number of the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def end(pid: int) -> None:
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def touch(size: int) -> None:
    with mmap.mmap(-1, size) as memory:
        for offset in range(0, size, mmap.PAGESIZE):
            memory[offset] = 1


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def detect() -> Facts:
    found = tree()
    return {
        "kernel": os.uname().release,
        "mounts": Path("/proc/mounts").read_text(),
        "version": found.version,
        "controllers": sorted(found.controllers),
        "blockers": found.blockers(),
    }


def limits() -> Facts:
    names = ("memory.max", "memory.swap.max", "pids.max", "cpu.max", "memory.oom.group")
    with grouped("limits", memory=64 * MIB, pids=32, cpus=0.5) as group:
        found: Facts = {name: read(path_of("limits") / name) for name in names}
        found["held"] = sorted(group.controllers)
        found["shared"] = read(TOP / "agentd" / "cgroup.subtree_control").split()
    with grouped("limits", cpus=1.5):
        found["cpu alone"] = {name: read(path_of("limits") / name) for name in names}
    return found


def memory_bomb() -> Facts:
    with grouped("bomb", memory=32 * MIB) as group:
        before = group.counters()
        bomb = wait(child(group, lambda: touch(64 * MIB)))
        after = group.counters()
        within = wait(child(group, lambda: touch(8 * MIB)))
    with grouped("bomb") as group:
        free = wait(child(group, lambda: touch(64 * MIB)))
    return {"bomb": bomb, "before": before, "after": after, "within": within, "unlimited": free}


def fork_bomb() -> Facts:
    def bomb() -> None:
        for _ in range(64):
            if os.fork() == 0:
                signal.pause()

    with grouped("forks", pids=8) as group:
        before = group.counters()
        parent = child(group, bomb)
        code = wait(parent)  # its fork failed: 1
        members = len(group.pids())
        peak = read(path_of("forks") / "pids.peak")
        after = group.counters()
        killed = group.kill()
        left = group.pids()
    return {
        "exit": code,
        "members": members,
        "peak": peak,
        "before": before,
        "after": after,
        "killed": killed,
        "left": sorted(left),
    }


def usage() -> Facts:
    def work() -> None:
        touch(24 * MIB)
        burn(0.2)

    with grouped("usage", memory=64 * MIB, cpus=1.0) as group:
        before = group.usage()
        wait(child(group, work))
        return {"before": before, "after": group.usage()}


def burn(seconds: float) -> None:
    while time.process_time() < seconds:
        pass


def cpu_quota() -> Facts:
    with grouped("cpu", cpus=0.1) as group:
        wait(child(group, lambda: burn(0.3)))
        found = {"limited": fields(path_of("cpu") / "cpu.stat")}
    with grouped("cpu") as group:
        wait(child(group, lambda: burn(0.3)))
        return found | {"unlimited": fields(path_of("cpu") / "cpu.stat")}


def freeze() -> Facts:
    """What busy processes do from the return of freeze on, which the kernel completes later."""
    with grouped("ice") as group:
        pids = [child(group, lambda: burn(1000)) for _ in range(6)]
        assert eventually(lambda: group.usage()["cpu_usec"] > 0)

        def uses_more_than(before: int) -> bool:
            return bool(group.usage()["cpu_usec"] > before)

        frozen, used, resumed = [], [], []
        for _ in range(10):
            group.freeze()
            frozen.append(fields(path_of("ice") / "cgroup.events")["frozen"])
            first = group.usage()["cpu_usec"]
            time.sleep(0.02)
            second = group.usage()["cpu_usec"]
            used.append(second - first)
            group.thaw()
            resumed.append(eventually(partial(uses_more_than, second)))
        group.freeze()
        killed = group.kill()
        codes = [wait(pid) for pid in pids]
    return {
        "frozen": frozen,
        "used": used,
        "resumed": resumed,
        "killed frozen": killed,
        "codes": codes,
    }


def kill() -> Facts:
    with grouped("kill") as group:
        pids = [child(group, signal.pause) for _ in range(5)]
        nested = path_of("kill") / "a" / "b"
        nested.mkdir(parents=True)
        (nested / "cgroup.procs").write_text(str(pids[0]))
        counted = len(group.pids())
        killed = group.kill()
        codes = [wait(pid) for pid in pids]
        left = sorted(group.pids())
    return {"counted": counted, "killed": killed, "codes": codes, "left": left}


def kill_without_cgroup_kill() -> Facts:
    """As on a kernel before 5.14: member by member, against one that forks all the time."""
    from agentd.linux.cgroup import files

    def fork_for_ever() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            with suppress(OSError):
                if os.fork() == 0:
                    time.sleep(0.01)
                    if os.fork():
                        os._exit(0)

    real = files.write_if_present

    def without(directory: str, name: str, value: int | str) -> bool:
        return name != "cgroup.kill" and real(directory, name, value)

    with grouped("old", pids=24) as group:
        pid = child(group, fork_for_ever)
        assert eventually(lambda: len(group.pids()) > 4)
        files.write_if_present = without
        try:
            killed = group.kill()
        finally:
            files.write_if_present = real
        code = wait(pid)
        left = sorted(group.pids())
    return {"killed": killed, "code": code, "left": left}


def nested_removal() -> Facts:
    group = tree().create("nest", pids=32)
    pids = []
    for relative in ("a", "a/b", "c"):
        inner = path_of("nest") / relative
        inner.mkdir()
        pids.append(child(group, signal.pause))
        (inner / "cgroup.procs").write_text(str(pids[-1]))
    group.remove()
    codes = [wait(pid) for pid in pids]
    group.remove()
    return {"codes": codes, "gone": not path_of("nest").exists()}


def stale() -> Facts:
    group = tree().create("sbx-1-2-dead", pids=4)
    pid = child(group, signal.pause)
    listed = tree().stale("sbx-")
    tree().reap("sbx-1-2-dead")
    return {"listed": listed, "code": wait(pid), "after": tree().stale("sbx-")}


def at_the_same_time() -> Facts:
    failures: list[str] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                with grouped(f"many-{number}-{turn}", memory=16 * MIB, pids=4, cpus=1.0) as group:
                    assert "memory" in group.controllers
        except Exception:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"failures": failures}


def nothing_left() -> Facts:
    return {"groups": sorted(str(path) for path in TOP.rglob("*") if path.is_dir())}


CHECKS: tuple[Callable[[], Facts], ...] = (
    detect,
    limits,
    memory_bomb,
    fork_bomb,
    usage,
    cpu_quota,
    freeze,
    kill,
    kill_without_cgroup_kill,
    nested_removal,
    stale,
    at_the_same_time,
)
