"""Capabilities against real sandboxes: the walls that can be had here, the others by name."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from tests.lasting import lasting, used

from agentd.capability import schema
from agentd.capability.call import CallContext, perform
from agentd.capability.port import Capability
from agentd.capability.registry import Registry
from agentd.client import build
from agentd.daemon.calls.inside import HandleInside
from agentd.daemon.pipeline import Pipeline, run
from agentd.model.capability import Outcome
from agentd.model.principal import local
from agentd.model.result import Result
from agentd.model.spec import ExecRequest
from agentd.sandbox.manager import Manager, SandboxHandle

BACKENDS = ("host", "landlock", "linux")


class Box:
    """One sandbox, and calls in it as the daemon makes them: checked, bounded, carried out."""

    def __init__(self, pipeline: Pipeline, handle: SandboxHandle, registry: Registry) -> None:
        self.handle = handle
        self.inside = HandleInside(handle, partial(run, handle))
        self.registry = registry

    def outcome(
        self,
        capability: str | Capability,
        emit: Callable[[str, bytes], None] = lambda kind, data: None,
        **parameters: Any,
    ) -> Outcome:
        if isinstance(capability, str):
            capability = self.registry.get(capability)
        about = capability.about
        checked = schema.check(about, parameters)
        call = CallContext.of(about, checked, request_id="req-test", emit=emit)
        return perform(capability, call, self.inside)

    def call(self, capability: str | Capability, **parameters: Any) -> dict[str, Any]:
        return dict(self.outcome(capability, **parameters).value)

    def put(self, path: str, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.inside.files.write(self.inside.path(path), data, parents=True)

    def get(self, path: str) -> bytes:
        return b"".join(self.inside.files.read_iter(self.inside.path(path)))

    def sh(self, text: str) -> Result:
        """A shell script in the workspace, which must succeed."""
        result = self.inside.execute(ExecRequest(argv=("sh", "-c", text), timeout=120))
        assert result.status == "ok", (result.cause, result.stderr)
        return result


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def manager() -> Iterator[Manager]:
    """What a backend leaves behind when it is closed is looked at by the contract suite."""
    with lasting() as manager:
        yield manager


@pytest.fixture(scope="module")
def started(backend: str, manager: Manager) -> Manager:
    found = manager.backend(backend).probe()
    if not found.usable:
        pytest.skip(f"{backend}: {'; '.join(blocker.what for blocker in found.blockers)}")
    return manager


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> None:
    if "pipeline" in request.fixturenames:
        request.getfixturevalue("started")


@pytest.fixture(autouse=True)
def _nothing_left_behind(shared: None, _nothing_left_behind: None) -> None:
    """What tests share is there before each of them is looked at."""


@pytest.fixture
def pipeline(backend: str, started: Manager) -> Iterator[Pipeline]:
    with used(started, backend) as manager:
        yield Pipeline(manager)


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The built-in ones alone, whatever else is installed."""
    return Registry(points=list)


@pytest.fixture
def make_box(backend: str, pipeline: Pipeline, registry: Registry) -> Iterator[Callable[..., Box]]:
    """A sandbox by the SDK's options; ended after the test."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Box:
            handle = pipeline.open(local("test"), build.sandbox_spec(backend=backend, **options))
            stack.callback(pipeline.close, handle)
            return Box(pipeline, handle, registry)

        yield make


@pytest.fixture
def box(make_box: Callable[..., Box]) -> Box:
    return make_box()
