"""Where no descriptor is left what ends still ends, and frees what it held; and what cannot be made
says so, and can be made again afterwards."""

import contextlib
import errno
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentd.client import embedded
from agentd.client.embedded_service import EmbeddedService
from agentd.model.api import SandboxBody
from agentd.model.errors import AgentdError, SandboxError
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.backends import identity, process
from agentd.sandbox.backends.linux import base, restoring
from agentd.sandbox.backends.linux.nursery import Nursery
from agentd.sandbox.backends.process import HostBackend
from agentd.sandbox.manager import Manager
from agentd.sandbox.supervisor import client, remote

WAIT = 120.0


def until(condition: Callable[[], bool], told: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to pass: {told()}"
        time.sleep(0.05)


@pytest.fixture
def link(tmp_path: Path) -> Iterator[client.SupervisorLink]:
    link = client.connect(str(tmp_path / "s"), lambda *_: None)
    yield link
    with contextlib.suppress(AgentdError):
        link.ask("shutdown")
        until(link.lost.is_set)
    link.close()


def descriptors(pid: int) -> set[int]:
    return set(map(int, os.listdir(f"/proc/{pid}/fd")))


@contextlib.contextmanager
def none_left(pid: int) -> Iterator[None]:
    """Within it that process can open nothing."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = descriptors(pid)
    free = next(number for number in range(len(taken) + 1) if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("how", ["killed", "expired", "paused"])
def test_what_ended_sandboxes_held_is_freed_by_a_supervisor_without_descriptors(
    link: client.SupervisorLink, how: str
) -> None:
    manager = Manager(load=remote.loader(link))
    pid = link.ask("hello")["pid"]
    manager.destroy(manager.create(SandboxSpec()))  # with it came what all have in common
    handles = [manager.create(SandboxSpec()) for _ in range(3)]
    if how == "paused" and "pause" in getattr(handles[0].wall, "lacks", {}):
        pytest.skip(getattr(handles[0].wall, "lacks", {})["pause"])
    for handle in handles:
        handle.wall.renew(None)  # type: ignore[attr-defined]
        handle.guest.run(ExecRequest(("sh", "-c", "sleep 1000 >/dev/null 2>&1 &")))
        if how == "paused":
            manager.pause(handle)
    groups = [handle.wall._group for handle in handles]  # type: ignore[union-attr]
    folders = {f for g in groups if g is not None for f in g.where()["directories"].values()}
    folders = {folder for folder in folders if os.path.isdir(folder)}
    held = len(descriptors(pid))
    with none_left(pid):
        for handle in handles:
            if how == "killed":
                manager.destroy(handle)
            else:
                handle.wall.renew(0.0)  # type: ignore[attr-defined]
        until(lambda: not remote.held(link))
        until(lambda: not any(map(os.path.isdir, folders)))
    # A pidfd, a listener and a tmpfs at the least, each.
    until(lambda: len(descriptors(pid)) <= held - 3 * len(handles))
    manager.close()


SCARCE = """
import json, os, resource, signal, threading, time
from agentd import AgentdError, Sandbox
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
def scarce(many=0):
    taken = set(map(int, os.listdir("/proc/self/fd")))
    free = [number for number in range(1000) if number not in taken][many]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
def usual():
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
def children():
    with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
        return [int(pid) for pid in file.read().split()]
told = []
make = lambda: Sandbox.create(backend="linux", embedded=True)
"""
AGAIN = """
make().close()
for pid in children():  # the zygote's
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
for _ in range(2):
    scarce()
    try:
        make()
    except AgentdError as error:
        told.append([error.code, error.cause, error.remediation])
    usual()
with make() as box:
    told.append(box.run("echo there").text)
print(json.dumps(told))
"""


def run(script: str) -> list[object]:
    ran = subprocess.run(
        [sys.executable, "-c", SCARCE + script], capture_output=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr.decode()
    found: list[object] = json.loads(ran.stdout)
    return found


def test_sandboxes_are_made_again_once_there_are_descriptors() -> None:
    """Also where the process that makes them was killed meanwhile."""
    first, second, there = run(AGAIN)
    for told in (first, second):
        assert isinstance(told, list) and told[0] == "sandbox_error", told
        assert "Too many open files" in told[1] and "ulimit -n" in told[2], told
    assert there == "there\n"


MOUNTED = """
make().close()
for many in range(8):
    scarce(many)
    try:
        Sandbox.create(backend="linux", embedded=True, workspace=f"{PLACE}:cow").close()
    except AgentdError as error:
        told.append([error.code, error.cause, error.remediation])
    usual()
print(json.dumps(told))
"""


def test_who_names_a_folder_is_not_to_blame(tmp_path: Path) -> None:
    told = run(f"PLACE = {str(tmp_path)!r}\n{MOUNTED}")
    assert told
    for code, cause, fix in told:  # type: ignore[misc]
        assert (code, "open files" in cause, "ulimit -n" in fix) == ("sandbox_error", True, True), (
            cause,
            fix,
        )


def test_a_command_line_without_them_says_what_it_lacks() -> None:
    """At each number of them: it runs, or says so."""
    for many in (12, 13, 14, 15, 16):
        script = f"ulimit -n {many}; exec {sys.executable} -m agentd run --embedded -- echo there"
        ran = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
        assert ran.stdout == "there\n" or "internal error" not in ran.stderr, (many, ran.stderr)
        assert ran.stdout == "there\n" or "open files" in ran.stderr, (many, ran.stderr)


def heard(function: Callable[..., object], failed: list[str]) -> Callable[..., object]:
    """Have ``failed`` get what the function raises."""

    def wrapped(*args: object, **options: object) -> object:
        try:
            return function(*args, **options)
        except BaseException as error:
            failed.append(repr(error))
            raise

    return wrapped


@pytest.fixture
def service() -> Iterator[EmbeddedService]:
    pipeline = embedded.new()
    yield EmbeddedService(pipeline)
    pipeline.manager.close()


def test_what_fails_last_closes_no_descriptor_that_is_anothers_by_then(
    service: EmbeddedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder beneath a workspace is opened anew, and that was the last of a wall's making."""
    opened = os.open

    def short(path: str, flags: int, *args: object, **options: object) -> int:
        if path == "." and flags == base._FOLDER:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, flags, *args, **options)  # type: ignore[arg-type]

    body = SandboxBody(isolation="namespace", workspace=f"{tmp_path}:cow")
    service.sandboxes.kill(service.sandboxes.create(body).id)  # with it came what all have
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", short)
        with pytest.raises(SandboxError, match="could not be built") as caught:
            service.sandboxes.create(body)
    assert "ulimit -n" in caught.value.remediation
    others = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(64)]
    del caught
    gc.collect()
    for fd in others:
        os.close(fd)
    service.sandboxes.kill(service.sandboxes.create(body).id)


def test_a_clone_made_ahead_is_freed_where_nothing_comes_of_it(
    service: EmbeddedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = SandboxBody(isolation="namespace")
    take, taken = Nursery.take_spare, []

    def spare(self: Nursery, *args: object) -> object:
        found = take(self, *args)  # type: ignore[arg-type]
        taken.append(found)
        return found

    monkeypatch.setattr(Nursery, "take_spare", spare)
    # Whoever asks for one ahead is told nothing of what is in its way: this says it.
    failed: list[str] = []
    monkeypatch.setattr(Nursery, "_ask_next", heard(Nursery._ask_next, failed))
    monkeypatch.setattr(identity, "take", heard(identity.take, failed))

    def is_ahead() -> bool:
        service.sandboxes.kill(service.sandboxes.create(body).id)
        return taken[-1] is not None

    def spares() -> object:
        each = [vars(nursery._spares) for nursery in backend._nurseries.values()]
        return each, failed[-1:], identity.configured(), len(descriptors(os.getpid()))

    backend = service.pipeline.manager.backend("linux")
    until(is_ahead, spares)

    def short(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def is_lost() -> bool:
        """With one that was made ahead."""
        with monkeypatch.context() as patch:
            patch.setattr(backend, "_request", short)
            with pytest.raises(SandboxError, match="could not be built"):
                service.sandboxes.create(body)
        lost = taken[-1] is not None
        if not lost:  # have one made ahead, and take whatever comes for this one
            service.sandboxes.kill(service.sandboxes.create(body).id)
        return lost

    until(is_lost)
    assert taken[-1].listener.fileno() < 0


def test_a_process_that_is_confined_and_not_told_of_is_ended(
    service: EmbeddedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, monitors = process.start_python, []

    def started(*args: object) -> int:
        monitors.append(start(*args))  # type: ignore[arg-type]
        return monitors[-1]

    def short(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(process, "start_python", started)
    monkeypatch.setattr(HostBackend, "_enforcement", short)
    with pytest.raises(SandboxError, match="could not be built"):
        service.sandboxes.create(SandboxBody(isolation="none"))
    with pytest.raises(ChildProcessError):
        os.waitpid(monitors[0], os.WNOHANG)


def test_a_snapshot_is_not_to_blame_where_no_descriptor_is_left(
    service: EmbeddedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = service.sandboxes.create(SandboxBody(isolation="namespace"))
    service.files.write(made.id, "/workspace/kept", b"kept")
    service.sandboxes.keep(made.id, tmp_path / "kept")
    opened = os.open

    def short(path: str, flags: int, *args: object, **options: object) -> int:
        if flags == restoring._NEW:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, flags, *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", short)
        with pytest.raises(SandboxError, match="could not be put back") as caught:
            service.sandboxes.create(SandboxBody(snapshot=str(tmp_path / "kept")))
    assert "ulimit -n" in caught.value.remediation
    assert "delete" not in caught.value.remediation
    assert service.sandboxes.create(SandboxBody(snapshot=str(tmp_path / "kept")))
