"""Every wall, one after the other, and a fake whose agent is reached through the stream alone.

A wall that cannot be had here is skipped by its name and its own reason.
"""

import contextlib
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests import combinations, gvisor, rootfs
from tests.conftest import nothing_left_behind
from tests.contract.ways import Refusal, rest
from tests.lasting import lasting as lasting_manager
from tests.lasting import used

from agentd.client import build
from agentd.client.embedded_service import EmbeddedService
from agentd.client.http import address
from agentd.client.http.client import HttpClient
from agentd.client.sandbox import Sandbox
from agentd.daemon.pipeline import Pipeline
from agentd.model.errors import AgentdError
from agentd.model.principal import local
from agentd.sandbox import backends
from agentd.sandbox.backends.oci.container import ContainerBackend
from agentd.sandbox.backends.wall import ProcessWall
from agentd.sandbox.manager import Manager
from agentd.sandbox.ports import Backend
from agentd.sandbox.supervisor import client as supervisor
from agentd.testing.walls.fixtures import canary, folder, workspace

__all__ = ["canary", "folder", "workspace"]


WHO = local("test")


@dataclass(frozen=True)
class Kind:
    """What sets the walls apart; all else is the same for every one."""

    name: str
    confined: bool = False
    namespaces: bool = False
    machine: bool = False  # a kernel of its own
    sentry: bool = False  # one of its own in user space, which is a process of the host's
    over_http: bool = False  # a daemon's: its processes and its kernel objects are out of reach

    @property
    def apart(self) -> bool:
        """Whether nothing of the host's is within reach."""
        return self.confined or self.machine or self.sentry


KINDS = {
    "fake": Kind("fake"),
    "host": Kind("host"),
    "landlock": Kind("landlock", confined=True),
    "linux": Kind("linux", confined=True, namespaces=True),
    "oci": Kind("oci", confined=True, namespaces=True),
    "gvisor": Kind("gvisor", sentry=True),
    "qemu": Kind("qemu", machine=True),
    "firecracker": Kind("firecracker", machine=True),
    "linux over HTTP": Kind("linux", confined=True, namespaces=True, over_http=True),
    "landlock over HTTP": Kind("landlock", confined=True, over_http=True),
    "qemu over HTTP": Kind("qemu", machine=True, over_http=True),
}
# What these ask is the agent's or the wall's, and is asked of each wall without a daemon; what a
# daemon changes in it, of one.
OF_ONE_WALL_OVER_HTTP = (
    *("test_run", "test_files", "test_streams", "test_late_output"),
    *("test_limits", "test_enforcement"),
    # Of machines that a daemon makes at once there is one more, in the same file.
    *("test_eight_threads_in_one_sandbox", "test_files_and_commands_at_once"),
    *("test_one_after_another", "test_closing_one_leaves_its_neighbour"),
)
# By these ways calls are made on a machine; by every way, on the namespace wall, and one on both.
WAYS_TO_A_MACHINE = ("REST", "SDK embedded")
# make test-root: where a test names no user, the linux wall's is root of a root to write to.
AS_ROOT = os.environ.get("AGENTD_TEST_AS_ROOT") == "1"
# One that runs already, and may do all; otherwise one is started.
URL = os.environ.get("AGENTD_CONTRACT_URL", "")
_CONFIG = """
[[listen]]
address = "unix:{folder}/agentd.sock"
[[auth.peers]]
uid = {uid}
scopes = ["admin"]
[sandbox]
minimum = "none"
networks = ["none", "restricted", "host"]
mounts = ["/"]
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out, of ours, what ``OF_ONE_WALL_OVER_HTTP``, ``WAYS_TO_A_MACHINE`` and
    ``gvisor.CASES`` say."""
    out = {item for item in items if not URL and _asked_elsewhere(item)}
    if out:
        config.hook.pytest_deselected(items=list(out))
        items[:] = [item for item in items if item not in out]


def _asked_elsewhere(item: pytest.Item) -> bool:
    params = _params(item)
    if params.get("governed") == "paranoid" and not combinations.ALL:
        return params.get("way", "REST") not in WAYS_TO_A_MACHINE
    kind = KINDS.get(_kind_of(item), KINDS["fake"])
    if kind.sentry and not gvisor.ALL:
        return getattr(item, "originalname", "") not in gvisor.CASES
    names = {item.path.stem, getattr(item, "originalname", "")}
    one = kind.name != "linux" and not names.isdisjoint(OF_ONE_WALL_OVER_HTTP)
    return kind.over_http and one and not combinations.ALL


# --- the fake ---


@functools.cache
def _toy() -> Any:
    """The example of a backend: no descriptor reaches its agent, all output comes in frames."""
    place = Path(__file__).parents[2] / "examples/agentd-wall-toy/agentd_wall_toy/__init__.py"
    spec = importlib.util.spec_from_file_location("agentd_wall_toy", place)
    assert spec is not None and spec.loader is not None
    toy = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    return toy


def _load(name: str) -> Backend:
    if name != "fake":
        return backends.load(name)
    made: Backend = _toy().ToyBackend()
    made.name = name
    return made


# --- sandboxes for the tests ---


@pytest.fixture(scope="session", autouse=True)
def image() -> Iterator[str]:
    """The name of the image that sandboxes start of, in a store of this run; or none."""
    with rootfs.of_the_run() as name:
        yield name


@pytest.fixture
def own_pipeline(canary: str) -> Iterator[Pipeline]:
    """For a test that no other's sandboxes may be beside."""
    pipeline = Pipeline(Manager(_load))
    yield pipeline
    pipeline.manager.close()


@pytest.fixture
def pipeline(request: pytest.FixtureRequest, lasting: Pipeline | None) -> Iterator[Pipeline]:
    if lasting is None:
        yield request.getfixturevalue("own_pipeline")
        return
    with used(lasting.manager, KINDS[_kind_of(request.node)].name):
        yield lasting


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, pipeline: Pipeline) -> Kind:
    """A test for some of them alone parametrizes it by their names, indirectly."""
    kind = KINDS[request.param]
    found = pipeline.manager.backend(kind.name).probe()
    if not found.usable:
        pytest.skip(f"{kind.name}: {'; '.join(blocker.what for blocker in found.blockers)}")
    return kind


@pytest.fixture(scope="session", autouse=True)
def daemon(request: pytest.FixtureRequest, image: str) -> Iterator[str]:
    """The address of one, for all tests that need one: there before the first looks for leaks."""
    if URL or not any("over HTTP" in item.name for item in request.session.items):
        yield URL
        return
    with tempfile.TemporaryDirectory(prefix="contract-daemon-") as folder:
        config, log = Path(folder, "agentd.toml"), Path(folder, "log")
        config.write_text(_CONFIG.format(folder=folder, uid=os.getuid()))
        argv = [sys.executable, "-m", "agentd", "serve", "--config", str(config)]
        with (
            log.open("wb") as sink,
            subprocess.Popen(
                [*argv, "--state", f"{folder}/state"],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            ) as process,
        ):
            try:
                yield _ready(process, f"unix:{folder}/agentd.sock", log)
            finally:
                process.terminate()
                process.wait(120)
                _end_supervisor(f"{folder}/state/supervisor.sock")


def _end_supervisor(path: str) -> None:
    """It would outlive the daemon for a minute."""
    with contextlib.suppress(AgentdError):
        link = supervisor.connect(path, lambda *_: None)
        link.ask("shutdown")
        link.lost.wait(120)
        link.close()


def _ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> str:
    client = HttpClient(address.parse(url))
    deadline = time.monotonic() + 120
    while True:
        try:
            client.call("GET", "/readyz")
            client.close()
            return url
        except AgentdError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the daemon did not come up:\n{log.read_text()}")
            time.sleep(0.05)


def create(kind: Kind, pipeline: Pipeline, daemon: str, **wanted: object) -> Sandbox:
    """``Sandbox.create`` of this wall."""
    if AS_ROOT and kind.namespaces:
        wanted = {"user": "root", "writable": True} | wanted
    if rootfs.IMAGE and kind.name in rootfs.WALLS:
        wanted = {"image": rootfs.name_of(rootfs.IMAGE)} | wanted
    if kind.over_http:
        return Sandbox.create(url=daemon, backend=kind.name, **wanted)  # type: ignore[arg-type]
    spec = build.sandbox_spec(backend=kind.name, **wanted)  # type: ignore[arg-type]
    service = EmbeddedService(pipeline, WHO)
    return Sandbox(service, service.adopt(pipeline.open(WHO, spec)))


@pytest.fixture
def make(kind: Kind, pipeline: Pipeline, daemon: str) -> Iterator[Callable[..., Sandbox]]:
    """``Sandbox.create`` of this wall; closed after the test."""
    made: list[Sandbox] = []

    def make(**wanted: object) -> Sandbox:
        made.append(create(kind, pipeline, daemon, **wanted))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.close()


@pytest.fixture
def abilities(kind: Kind) -> frozenset[str]:
    """What the wall says that it can do."""
    return frozenset() if kind.name == "fake" else backends.abilities(kind.name)


@pytest.fixture
def restore(kind: Kind, pipeline: Pipeline, daemon: str) -> Callable[[Any], Sandbox]:
    """Makes a sandbox of a snapshot, where the wall is; the caller closes it."""

    def restore(snapshot: Any) -> Sandbox:
        if kind.over_http:
            return Sandbox.create(url=daemon, snapshot=snapshot)
        spec = build.restored_spec(snapshot.spec)
        service = EmbeddedService(pipeline, WHO)
        return Sandbox(service, service.adopt(pipeline.open(WHO, spec, snapshot)))

    return restore


class Lent:
    """A machine that tests use in turn; ``back`` closes the connections that one of them left."""

    # Of its own commands: the agent is PID 1, and not signalled so (kill(2)).
    _EMPTY = "kill -KILL -1; rm -rf ./..?* ./.[!.]* ./*"

    def __init__(self, kind: Kind, pipeline: Pipeline, url: str) -> None:
        self._url = url if kind.over_http else ""
        if self._url:
            # The usual lease ends in the midst of a test; this one, with a run that was killed.
            wanted = {"backend": kind.name, "ttl": 7200}
            made = json.loads(rest(url, "POST", "/v1/sandboxes", wanted))
            self._id: str = made["id"]
        else:
            self._own = create(kind, pipeline, url)

    def out(self) -> Sandbox:
        self._taken = Sandbox.connect(self._id, url=self._url) if self._url else self._own
        return self._taken

    def back(self) -> None:
        if self._url:
            self._taken.close()
        else:
            held(self._own).guest.renew()

    def emptied(self) -> bool:
        """Whether it is without the files and processes of the test before."""
        try:
            return self.out().run(self._EMPTY).exit_code == 0
        except AgentdError:
            return False
        finally:
            self.back()

    def end(self) -> None:
        if self._url:
            try:
                rest(self._url, "DELETE", f"/v1/sandboxes/{self._id}")
            except Refusal as gone:  # a test may have ended it
                if gone.code != "not_found":
                    raise
        else:
            self._own.close()


class Machines:
    """One of each kind for the tests that share it, since its boot is most of such a test.

    Each finds it empty; it is another one where the one before did not leave it so.
    """

    def __init__(self, daemon: str) -> None:
        self._daemon = daemon
        self._freed = contextlib.ExitStack()
        self._pipeline = Pipeline(self._freed.enter_context(lasting_manager(_load)))
        self._made: dict[str, Lent] = {}

    def pipeline(self, kind: Kind) -> Pipeline:
        """Its own, with what makes that wall's sandboxes started."""
        backend: Any = self._pipeline.manager.backend(kind.name)
        asked = kind.sentry or bool(rootfs.IMAGE)
        if backend.probe().usable and asked and isinstance(backend, ContainerBackend):
            backend._agents()  # the interpreter, which it has from its first sandbox on
        return self._pipeline

    def get(self, name: str) -> Lent | None:
        """None where none can be had."""
        kind = KINDS[name]
        if not self._pipeline.manager.backend(kind.name).probe().usable:
            return None
        found = self._made.pop(name, None)
        if found is not None and not found.emptied():
            found.end()
            found = None
        self._made[name] = found or Lent(kind, self._pipeline, self._daemon)
        return self._made[name]

    def close(self) -> None:
        for machine in self._made.values():
            machine.end()
        self._freed.close()


@pytest.fixture(scope="session")
def machines(canary: str, daemon: str) -> Iterator[Machines]:
    with nothing_left_behind():
        machines = Machines(daemon)
        yield machines
        machines.close()


def _kind_of(item: pytest.Item) -> str:
    return str(_params(item).get("kind", ""))


def _params(item: pytest.Item) -> dict[str, object]:
    call = getattr(item, "callspec", None)
    return call.params if call else {}


@pytest.fixture
def lasting(request: pytest.FixtureRequest, machines: Machines) -> Pipeline | None:
    """The one of all tests, whose own leavings are looked at when all have ended."""
    name = _kind_of(request.node)
    return machines.pipeline(KINDS[name]) if name else None


@pytest.fixture
def shared(request: pytest.FixtureRequest, machines: Machines) -> Lent | None:
    """The machine of a test that shares one; such a test changes nothing but the workspace."""
    marked = request.node.get_closest_marker("shares_machine")
    if not marked or "sandbox" not in request.fixturenames:
        return None
    name = _kind_of(request.node)
    return machines.get(name) if KINDS[name].machine else None


@pytest.fixture(autouse=True)
def _nothing_left_behind(
    lasting: Pipeline | None, shared: Lent | None, _nothing_left_behind: None
) -> None:
    """What tests share is there before each of them is looked at."""


@pytest.fixture
def sandbox(shared: Lent | None, make: Callable[..., Sandbox]) -> Iterator[Sandbox]:
    if shared is None:
        yield make()
    else:
        yield shared.out()
        shared.back()


def held(sandbox: Sandbox) -> Any:
    """What the manager holds of a sandbox of this process."""
    service: Any = sandbox._service
    return service.handle(sandbox.id)


@pytest.fixture
def handle_of(kind: Kind) -> Callable[[Sandbox], Any]:
    """What the manager holds of a sandbox; of a daemon's that is out of reach."""

    def find(sandbox: Sandbox) -> Any:
        if kind.over_http:
            pytest.skip("over HTTP: the wall is the daemon's")
        return held(sandbox)

    return find


@pytest.fixture
def end_agent(handle_of: Callable[[Sandbox], Any]) -> Callable[[Sandbox], None]:
    """Kills a sandbox's agent from outside, as the kernel might."""

    def end(sandbox: Sandbox) -> None:
        # By descriptor: a number could be a stranger's by now.
        wall = handle_of(sandbox).wall
        if isinstance(wall, ProcessWall):
            wall._first.kill()
            # One of many threads takes a moment, in which it answers as if it were there.
            assert wall._first.wait(120)
        else:
            signal.pidfd_send_signal(wall._pidfd, signal.SIGKILL)

    return end


@pytest.fixture
def agent_status(handle_of: Callable[[Sandbox], Any]) -> Callable[[Sandbox], dict[str, str]]:
    """The kernel's own words of a sandbox's agent: /proc/PID/status, read from outside."""

    def read(sandbox: Sandbox) -> dict[str, str]:
        lines = Path(f"/proc/{handle_of(sandbox).wall.pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    return read
