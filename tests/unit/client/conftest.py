"""A backend without a wall, whose agent is the real one in a process of its own."""

import array
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from agentd.client import embedded
from agentd.daemon.pipeline import Pipeline
from agentd.model.availability import Availability
from agentd.model.enforcement import Control
from agentd.model.errors import BackendLost
from agentd.model.isolation import IsolationLevel
from agentd.sandbox.manager import Manager

AGENT = """
import socket, sys
from agentd.guest.agent import preload, run_on_listener
preload()
run_on_listener(socket.socket(fileno=int(sys.argv[1])), pid1=False)
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


@pytest.fixture
def backend(tmp_path, monkeypatch):
    """Every sandbox of the test is one of this backend's."""
    fake = FakeBackend(str(tmp_path))
    pipeline = Pipeline(Manager(lambda name: fake))
    monkeypatch.setattr(embedded, "shared", lambda: pipeline)
    monkeypatch.setattr(embedded, "new", lambda begin=None: pipeline)
    yield fake
    pipeline.manager.close()
