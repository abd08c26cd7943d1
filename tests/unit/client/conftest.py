"""A backend without a wall, whose agent is the real one in a process of its own."""

import array
import os
import shutil
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from agentd.client import embedded
from agentd.client.http import address
from agentd.daemon.pipeline import Pipeline
from agentd.model.availability import Availability
from agentd.model.enforcement import Control
from agentd.model.errors import BackendLost
from agentd.model.isolation import IsolationLevel
from agentd.sandbox import progress
from agentd.sandbox.manager import Manager

AGENT = """
import socket, sys
from agentd.guest.agent import Ready, preload
preload()
Ready(pid1=False).serve(socket.socket(fileno=int(sys.argv[1])))
"""


class FakeWall:
    passes_descriptors = True

    def __init__(self, workspace):
        self.workspace = workspace
        self.enforcement = {"wall": Control("default", False, "a fake for tests")}
        self.hits = {"oom": 0, "pids": 0}
        self._listener, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", AGENT, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )

    def open_stream(self):
        ours, theirs = socket.socketpair()
        with theirs:
            rights = array.array("i", [theirs.fileno()])
            try:
                self._listener.sendmsg([b"s"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            except OSError as error:
                ours.close()
                raise BackendLost("the agent is gone", cause=str(error)) from None
        return ours

    def counters(self):
        return dict(self.hits)

    def wait(self, timeout=None):
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self):
        self._listener.close()
        self.process.kill()
        self.process.wait()


class FakeOverlayWall(FakeWall):
    listed = ("A new", "D gone")
    applied = 0

    def changes(self):
        return self.listed

    def apply(self):
        self.applied += 1


class FakeMachineWall(FakeWall):
    """One that stands still by signals, and whose snapshot is its workspace."""

    fidelity = "files"

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def snapshot(self, folder):
        shutil.copytree(self.workspace, f"{folder}/files")


class FakeBackend:
    name = "linux"
    level = IsolationLevel.NAMESPACE

    def __init__(self, workspace):
        self.workspace = workspace
        self.walls = []
        self.specs = []

    def probe(self):
        return Availability(True)

    def plan(self, spec):
        self.specs.append(spec)
        return SimpleNamespace(spec=spec)

    def launch(self, plan):
        cow = any(mount.mode == "cow" for mount in plan.spec.mounts)
        self.walls.append((FakeOverlayWall if cow else FakeWall)(self.workspace))
        return self.walls[-1]

    def close(self):
        pass


class FakeMachines(FakeBackend):
    """A backend whose walls can do what virtual machines can; each has a workspace of its own."""

    name = "qemu"
    level = IsolationLevel.MICROVM

    def launch(self, plan):
        progress.report("booting", 0.5)
        return self._wall(plan)

    def restore(self, plan, folder):
        return self._wall(plan, f"{folder}/files")

    def _wall(self, plan, files=None):
        workspace = f"{self.workspace}/{len(self.walls)}"
        if files is None:
            os.mkdir(workspace)
        else:
            shutil.copytree(files, workspace)
        self.walls.append(FakeMachineWall(workspace))
        return self.walls[-1]


@pytest.fixture(autouse=True)
def _no_daemon(tmp_path, monkeypatch):
    """Whatever runs on this machine is not found."""
    monkeypatch.delenv("AGENTD_URL", raising=False)
    monkeypatch.delenv("AGENTD_API_KEY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(address, "SYSTEM_SOCKET", str(tmp_path / "none.sock"))


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """As ``backend``, of walls that pause, and of which snapshots can be taken."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "walls").mkdir()
    yield from _installed(FakeMachines(str(tmp_path / "walls")), monkeypatch)


@pytest.fixture
def backend(tmp_path, monkeypatch):
    """Every sandbox of the test is one of this backend's."""
    yield from _installed(FakeBackend(str(tmp_path)), monkeypatch)


def _installed(fake, monkeypatch):
    pipeline = Pipeline(Manager(lambda name: fake))
    monkeypatch.setattr(embedded, "shared", lambda: pipeline)
    monkeypatch.setattr(embedded, "new", lambda begin=None: pipeline)
    yield fake
    pipeline.manager.close()
