"""Groups made by those who own only a part of the tree: a systemd unit, a user, a container."""

import ctypes
import json
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from group_checks import MIB, TOP, Facts, child, end, read, touch, tree, wait

from agentd.linux import abi, cgroup

NOBODY = 65534


def _answer_of(work: Callable[[], Facts], before: Callable[[], object]) -> Facts:
    """``work()`` in a forked process, after ``before()``; what it raised is raised here."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                before()
                answer: tuple[bool, Any] = (True, work())
            except BaseException as error:
                answer = (False, repr(error))
            os.write(theirs, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    try:
        with open(ours, encoding="utf-8") as pipe:
            ok, value = json.load(pipe)
        assert ok, value
        facts: Facts = value
        return facts
    finally:
        end(pid)


def _limited(name: str) -> Facts:
    """What a hierarchy found from here is worth: a limit of it must kill."""
    found = tree()
    facts: Facts = {"blockers": found.blockers(), "controllers": sorted(found.controllers)}
    if facts["blockers"]:
        return facts
    group = found.create(name, memory=32 * MIB, pids=8, cpus=0.5)
    try:
        facts["bomb"] = wait(child(group, lambda: touch(64 * MIB)))
        facts["oom"] = group.counters()["oom"]
        facts["own"] = read(Path("/proc/self/cgroup"))
    finally:
        group.remove()
    facts["again"] = tree().blockers()
    return facts


def _scope(name: str) -> Path:
    """A group as systemd makes one: controllers shared down to it, and no process in it yet."""
    (TOP / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    scope = TOP / name
    scope.mkdir()
    return scope


def _enter(scope: Path) -> None:
    (scope / "cgroup.procs").write_text(str(os.getpid()))


def _remove(scope: Path) -> None:
    for inner in sorted(scope.rglob("*"), reverse=True):
        if inner.is_dir():
            inner.rmdir()
    scope.rmdir()


def delegated_to_root() -> Facts:
    scope = _scope("unit.service")
    os.setxattr(scope, "trusted.delegate", b"1")
    try:
        facts = _answer_of(lambda: _limited("box"), lambda: _enter(scope))
        facts["groups"] = sorted(path.name for path in scope.iterdir() if path.is_dir())
        return facts
    finally:
        _remove(scope)


def delegated_to_a_user() -> Facts:
    scope = _scope("user.scope")
    for path in (scope, *(scope / f"cgroup.{name}" for name in ("procs", "subtree_control"))):
        os.chown(path, NOBODY, NOBODY)

    def become_user() -> None:
        _enter(scope)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)

    try:
        return _answer_of(lambda: _limited("box"), become_user)
    finally:
        _remove(scope)


def a_user_without_delegation() -> Facts:
    def become_user() -> None:
        os.setresuid(NOBODY, NOBODY, NOBODY)

    return _answer_of(lambda: _limited("box"), become_user)


def in_a_container() -> Facts:
    """Root of a container: a cgroup namespace of its own, and its group is the top of the mount."""
    scope = _scope("container")
    libc = ctypes.CDLL(None, use_errno=True)

    def enter() -> None:
        _enter(scope)
        if libc.unshare(abi.CLONE_NEWCGROUP | abi.CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["mount", "--make-rprivate", "/"], check=False, stdin=subprocess.DEVNULL)
        subprocess.run(["umount", "/sys/fs/cgroup"], check=True)
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"], check=True)

    try:
        return _answer_of(lambda: _limited("box"), enter)
    finally:
        _remove(scope)


def taken_back() -> Facts:
    """A group whose controllers the owner of the tree withholds is said to have none."""
    with suppress(OSError):
        (TOP / "cgroup.subtree_control").write_text("-memory")
    scope = TOP / "poor.service"
    scope.mkdir()
    os.setxattr(scope, "user.delegate", b"1")

    def look() -> Facts:
        found = cgroup.detect()
        assert found is not None
        group = found.create("box", memory=32 * MIB, pids=8)
        group.remove()
        return {"controllers": sorted(found.controllers), "held": sorted(group.controllers)}

    try:
        return _answer_of(look, lambda: _enter(scope))
    finally:
        _remove(scope)


CHECKS: tuple[Callable[[], Facts], ...] = (
    delegated_to_root,
    delegated_to_a_user,
    a_user_without_delegation,
    in_a_container,
    taken_back,
)
