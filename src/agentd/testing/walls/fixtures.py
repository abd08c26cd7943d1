"""What the suite's tests are given, but for their sandboxes: ``conftest`` makes those."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd import Sandbox

CANARY = "AGENTD_TEST_CANARY"


@pytest.fixture(scope="session")
def canary() -> Iterator[str]:
    """A variable of the host's environment, there before the first wall is built."""
    os.environ[CANARY] = "leaked"
    yield CANARY
    del os.environ[CANARY]


@pytest.fixture
def workspace(sandbox: Sandbox) -> str:
    """Its path inside."""
    return sandbox.run(["pwd"]).text.strip()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory of the caller's that other users can look into; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="agentd-walls-") as name:
        os.chmod(name, 0o755)  # noqa: S103  a sandbox may run as another user
        yield Path(name)
