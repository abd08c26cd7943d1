"""Sandboxes behind the wall that is tested, as users make them."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentd import AgentdError, Client, Refused, Sandbox, Snapshot
from agentd.testing.walls.fixtures import canary, folder, workspace

__all__ = ["canary", "folder", "workspace"]


DEFAULT = "default"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        names = metafunc.config.getoption("backend") or [DEFAULT]
        metafunc.parametrize("backend", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> str | None:
    """The name of the wall that is tested; None for the one that agentd takes."""
    name: str = request.param
    return None if name == DEFAULT else name


@pytest.fixture(scope="session")
def where(request: pytest.FixtureRequest, backend: str | None, canary: str) -> dict[str, Any]:
    """The wall, as arguments of ``Sandbox.create``. Ends the run where it makes no sandbox here."""
    url = request.config.getoption("url")
    found: dict[str, Any] = {"backend": backend} if backend else {}
    found |= {"url": url} if url else {"embedded": True}
    if image := request.config.getoption("image"):
        found["image"] = image
    copies = request.config.getoption("copies")
    try:
        with Sandbox.create(**found) as sandbox:
            name = sandbox.info.backend
    except AgentdError as error:
        pytest.exit(f"there is no wall to test: {error}", returncode=4)
    if copies and copies not in told(url)[name]:
        pytest.exit(f"there are no copies to test: {name} has no {copies}", returncode=4)
    return found


@pytest.fixture
def make(
    request: pytest.FixtureRequest, where: dict[str, Any], restore: Callable[[Snapshot], Sandbox]
) -> Iterator[Callable[..., Sandbox]]:
    """``Sandbox.create`` of the wall, or a copy of that; closed after the test."""
    copies = request.config.getoption("copies")
    made: list[Sandbox] = []

    def make(**wanted: Any) -> Sandbox:
        made.append(Sandbox.create(**where, **wanted))
        if copies:
            first = made[-1]
            made[-1] = copy_of(first, copies, restore)
            if made[-1] is not first:
                first.close()
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.close()


def copy_of(first: Sandbox, how: str, restore: Callable[[Snapshot], Sandbox]) -> Sandbox:
    """Return a copy of ``first``; ``first`` itself where it is refused, as with mounted folders."""
    try:
        if how == "fork":
            return first.fork()[0]
        with first.snapshot() as kept:
            return restore(kept)
    except Refused as refusal:
        assert refusal.remediation, f"a refusal that says no way out: {refusal}"
        return first


@pytest.fixture
def sandbox(make: Callable[..., Sandbox]) -> Sandbox:
    return make()


@pytest.fixture
def restore(where: dict[str, Any]) -> Callable[[Snapshot], Sandbox]:
    """Makes a sandbox of a snapshot, where the wall is; the caller closes it."""
    place = {name: value for name, value in where.items() if name not in ("backend", "image")}
    return lambda snapshot: Sandbox.create(snapshot=snapshot, **place)


@pytest.fixture
def abilities(where: dict[str, Any], sandbox: Sandbox) -> frozenset[str]:
    """What the wall says that it can do, as ``agentd doctor`` and a daemon tell it."""
    return told(where.get("url"))[sandbox.info.backend]


@functools.cache
def told(url: str | None) -> dict[str, frozenset[str]]:
    """The abilities of each backend, by its name."""
    if url:
        with Client(url) as client:
            return {found.name: frozenset(found.abilities) for found in client.machine.backends()}
    argv = [sys.executable, "-m", "agentd", "doctor", "--json"]
    done = subprocess.run(argv, capture_output=True, check=True, timeout=120)
    return {
        found["name"]: frozenset(found["abilities"])
        for found in json.loads(done.stdout)["backends"]
    }
