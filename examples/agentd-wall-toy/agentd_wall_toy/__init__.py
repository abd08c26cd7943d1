"""The smallest backend: agentd's agent as a process of the caller's, and no wall around it."""

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import agentd
from agentd.model.availability import Availability
from agentd.model.enforcement import Control
from agentd.model.errors import BackendLost, Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import SandboxSpec

LIMITS = ("memory", "cpus", "pids", "disk", "open_files")
# The agent, and above it a process that gets every orphan and ends with all of them.
AGENT = """
import os, select, socket, sys, time
sys.path.insert(0, sys.argv[2])
from agentd.guest.agent import Ready
from agentd.linux import process
process.set_child_subreaper()
agent = os.fork()
if agent == 0:
    os.setsid()
    Ready(pid1=False).serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)
os.close(int(sys.argv[1]))
print(agent, flush=True)
poll = select.poll()
poll.register(0, select.POLLIN)
poll.register(os.pidfd_open(agent), select.POLLIN)
poll.poll()
process.kill_descendants(os.getpid(), time.monotonic() + 120)
"""


@dataclass(frozen=True)
class ToyPlan:
    spec: SandboxSpec


class ToyWall:
    """A process with the agent in it: each stream to it is one end of a socket pair."""

    passes_descriptors = False

    def __init__(self, env: dict[str, str] | None = None) -> None:
        """``env`` is what commands have besides a path and a home."""
        self.workspace = tempfile.mkdtemp(prefix="agentd-toy-")
        self._listener, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        source = os.path.dirname(os.path.dirname(agentd.__file__))
        with theirs:
            self._parent = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", AGENT, str(theirs.fileno()), source],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env={"PATH": "/usr/bin:/bin", "HOME": self.workspace, **(env or {})},
            )
        assert self._parent.stdout is not None  # noqa: S101  it is a pipe
        self.pid = int(self._parent.stdout.readline())
        self._pidfd = os.pidfd_open(self.pid)
        self._ended = False
        nothing = Control("default", False, "a toy has no wall")
        self.enforcement = dict.fromkeys(("isolation", *LIMITS), nothing)

    def open_stream(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._listener, [b"c"], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise BackendLost("the agent is gone", cause=str(error)) from error
        return ours

    def counters(self) -> dict[str, int]:
        return {}

    def usage(self) -> dict[str, int]:
        return {}

    def alive(self) -> bool:
        return not self.wait(0)

    def wait(self, timeout: float | None = None) -> bool:
        return self._ended or bool(select.select([self._pidfd], [], [], timeout)[0])

    def kill(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._listener.close()
        self._parent.communicate()  # its stdin closes: it ends all that is below it, and itself
        os.close(self._pidfd)
        remove(self.workspace)

    def save(self) -> dict[str, object]:
        return {"pid": self.pid}


class ToyBackend:
    name = "toy"
    level = IsolationLevel.NONE
    images = False
    abilities: frozenset[str] = frozenset()

    def requirements(self) -> tuple[str, ...]:
        return ()

    def probe(self) -> Availability:
        return Availability(usable=True)

    def plan(self, spec: SandboxSpec) -> ToyPlan:
        limits = [name for name in LIMITS if getattr(spec.limits, name) is not None]
        if spec.mounts or spec.user or limits:
            raise Refused(
                f"backend {self.name} enforces nothing", remediation="use another backend"
            )
        return ToyPlan(spec)

    def launch(self, plan: ToyPlan) -> ToyWall:
        return ToyWall()

    def close(self) -> None:
        pass


def remove(folder: str) -> None:
    """Delete it, whatever modes its folders were left with; a link is not followed."""
    for place, _, _ in os.walk(folder):  # from above: what is closed is opened before it is read
        for name in os.listdir(place):
            path = os.path.join(place, name)
            if os.path.isdir(path) and not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
