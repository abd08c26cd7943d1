"""Sandboxes behind the wall that is tested, as users make them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentd import AgentdError, Sandbox
from agentd.testing.walls.fixtures import canary, folder, workspace

__all__ = ["canary", "folder", "workspace"]


@pytest.fixture(scope="session")
def where(request: pytest.FixtureRequest, canary: str) -> dict[str, Any]:
    """The wall, as arguments of ``Sandbox.create``. Ends the run where it makes no sandbox here."""
    backend, url = request.config.getoption("backend"), request.config.getoption("url")
    found: dict[str, Any] = {"backend": backend} if backend else {}
    found |= {"url": url} if url else {"embedded": True}
    try:
        Sandbox.create(**found).close()
    except AgentdError as error:
        pytest.exit(f"there is no wall to test: {error}", returncode=4)
    return found


@pytest.fixture
def make(where: dict[str, Any]) -> Iterator[Callable[..., Sandbox]]:
    """``Sandbox.create`` of the wall; closed after the test."""
    made: list[Sandbox] = []

    def make(**wanted: Any) -> Sandbox:
        made.append(Sandbox.create(**where, **wanted))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.close()


@pytest.fixture
def sandbox(make: Callable[..., Sandbox]) -> Sandbox:
    return make()
