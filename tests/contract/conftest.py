"""Every wall, one after the other, and a fake whose agent is reached through the stream alone.

A wall that cannot be had here is skipped by its name and its own reason.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

import agentd
from agentd.client import build
from agentd.client.sandbox import Sandbox
from agentd.daemon.pipeline import Pipeline
from agentd.guest.zygote.scratch import remove
from agentd.linux import idmap
from agentd.model.availability import Availability
from agentd.model.enforcement import Control
from agentd.model.errors import BackendLost, Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import SandboxSpec
from agentd.sandbox import backends
from agentd.sandbox.manager import Manager
from agentd.sandbox.ports import Backend

CANARY = "AGENTD_TEST_CANARY"
SOURCE = os.path.dirname(os.path.dirname(agentd.__file__))
NO_WALL = "a fake has no wall"


@dataclass(frozen=True)
class Kind:
    """What sets the walls apart; all else is the same for every one."""

    name: str
    confined: bool = False
    namespaces: bool = False
    machine: bool = False  # a kernel of its own

    @property
    def apart(self) -> bool:
        """Whether nothing of the host's is within reach."""
        return self.confined or self.machine


KINDS = {
    "fake": Kind("fake"),
    "host": Kind("host"),
    "landlock": Kind("landlock", confined=True),
    "linux": Kind("linux", confined=True, namespaces=True),
    "qemu": Kind("qemu", machine=True),
}

# --- the fake ---

_AGENT = """
import os, select, socket, sys, time
sys.path.insert(0, sys.argv[2])
from agentd.guest.agent import run_on_listener
from agentd.linux import process
process.set_child_subreaper()
agent = os.fork()
if agent == 0:
    os.setsid()
    run_on_listener(socket.socket(fileno=int(sys.argv[1])), pid1=False)
    os._exit(0)
os.close(int(sys.argv[1]))
print(agent, flush=True)
poll = select.poll()
poll.register(0, select.POLLIN)
poll.register(os.pidfd_open(agent), select.POLLIN)
poll.poll()
process.kill_descendants(os.getpid(), time.monotonic() + 10)
"""


class FakePlan(msgspec.Struct, frozen=True):
    spec: SandboxSpec


class FakeWall:
    """No descriptor reaches its agent: all output comes in frames, as out of a virtual machine."""

    passes_descriptors = False

    def __init__(self) -> None:
        self.workspace = tempfile.mkdtemp(prefix="agentd-")
        self._listener, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._parent = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _AGENT, str(theirs.fileno()), SOURCE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env={"PATH": "/usr/bin:/bin", "HOME": self.workspace},
            )
        assert self._parent.stdout is not None
        self.pid = int(self._parent.stdout.readline())
        self._pidfd = os.pidfd_open(self.pid)
        self._ended = False
        limits = ("memory", "cpus", "pids", "disk", "open_files")
        self.enforcement = {
            name: Control("default", False, NO_WALL) for name in ("isolation", *limits)
        }

    def open_stream(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._listener, [b"c"], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise BackendLost("the fake is gone", cause=str(error)) from error
        return ours

    def counters(self) -> dict[str, int]:
        return {}

    def usage(self) -> dict[str, int]:
        return {}

    def alive(self) -> bool:
        return not self.wait(0)

    def wait(self, timeout: float | None = None) -> bool:
        if self._ended:
            return True
        return bool(select.select([self._pidfd], [], [], timeout)[0])

    def kill(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._listener.close()
        self._parent.communicate()
        os.close(self._pidfd)
        remove(self.workspace)

    def save(self) -> dict[str, object]:
        return {"pid": self.pid}


class FakeBackend:
    name = "fake"
    level = IsolationLevel.NONE

    def requirements(self) -> tuple[str, ...]:
        return ()

    def probe(self) -> Availability:
        return Availability(usable=True)

    def plan(self, spec: SandboxSpec) -> FakePlan:
        limits = spec.limits
        if (
            spec.mounts
            or spec.user
            or any((limits.memory, limits.cpus, limits.pids, limits.disk, limits.open_files))
        ):
            raise Refused("backend fake enforces nothing", remediation="use another backend")
        return FakePlan(spec)

    def launch(self, plan: FakePlan) -> FakeWall:
        return FakeWall()

    def close(self) -> None:
        pass


# --- sandboxes for the tests ---


def _load(name: str) -> Backend:
    return FakeBackend() if name == "fake" else backends.load(name)


@pytest.fixture(scope="session")
def canary() -> Iterator[str]:
    """A variable of the host's environment, there before the first wall is built."""
    os.environ[CANARY] = "leaked"
    yield CANARY
    del os.environ[CANARY]


@pytest.fixture
def pipeline(canary: str) -> Iterator[Pipeline]:
    """A new one each test, so that what a backend leaves behind is seen too."""
    pipeline = Pipeline(Manager(_load))
    yield pipeline
    pipeline.manager.close()
    idmap.close_all()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, pipeline: Pipeline) -> Kind:
    """A test for some of them alone parametrizes it by their names, indirectly."""
    kind = KINDS[request.param]
    found = pipeline.manager.backend(kind.name).probe()
    if not found.usable:
        pytest.skip(f"{kind.name}: {'; '.join(blocker.what for blocker in found.blockers)}")
    return kind


@pytest.fixture
def make(kind: Kind, pipeline: Pipeline) -> Iterator[Callable[..., Sandbox]]:
    """``Sandbox.create`` of this wall; closed after the test."""
    made: list[Sandbox] = []

    def create(**wanted: object) -> Sandbox:
        spec = build.sandbox_spec(backend=kind.name, **wanted)  # type: ignore[arg-type]
        made.append(Sandbox(pipeline, pipeline.open("test", spec), "test"))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.close()


@pytest.fixture
def sandbox(make: Callable[..., Sandbox]) -> Sandbox:
    return make()


@pytest.fixture
def workspace(sandbox: Sandbox) -> str:
    """Its path inside."""
    return sandbox.run(["pwd"]).text.strip()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory of the caller's that other users can look into; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="contract-") as name:
        os.chmod(name, 0o755)  # noqa: S103  a sandbox may run as another user
        yield Path(name)


@pytest.fixture
def end_agent() -> Callable[[Sandbox], None]:
    """Kills a sandbox's agent from outside, as the kernel might."""

    def end(sandbox: Sandbox) -> None:
        # By descriptor: a number could be a stranger's by now.
        signal.pidfd_send_signal(sandbox._handle.wall._pidfd, signal.SIGKILL)  # type: ignore[attr-defined]

    return end


@pytest.fixture
def agent_status() -> Callable[[Sandbox], dict[str, str]]:
    """The kernel's own words of a sandbox's agent: /proc/PID/status, read from outside."""

    def read(sandbox: Sandbox) -> dict[str, str]:
        pid = sandbox._handle.wall.pid  # type: ignore[attr-defined]
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    return read
