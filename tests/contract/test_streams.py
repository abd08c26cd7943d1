"""The suite of every wall, over ours: output as it comes, terminals."""

import os

import pytest

from agentd import CauseCode, Sandbox
from agentd.testing.walls.test_streams import *


@pytest.mark.parametrize(
    "kind", ["fake", "host", "linux", "linux over HTTP", "qemu"], indirect=True
)
def test_these_walls_have_terminals(sandbox: Sandbox) -> None:
    with sandbox.start(["test", "-t", "0"], pty=(24, 80)) as process:
        assert process.wait().exit_code == 0


@pytest.mark.parametrize("kind", ["landlock"], indirect=True)
def test_a_wall_without_terminals_says_so(sandbox: Sandbox) -> None:
    with sandbox.start(["true"], pty=(24, 80)) as process:
        result = process.wait()
    assert result.cause.code is CauseCode.SPAWN_FAILED
    assert "pty" in result.cause.message
    assert os.strerror(13) in result.cause.message
