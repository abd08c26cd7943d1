"""The backend against a zygote that is killed."""

import os
import signal

import pytest

from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.linux.backend import LinuxBackend


@pytest.fixture
def backend():
    backend = LinuxBackend()
    found = backend.probe()
    if not found.usable:
        pytest.skip(f"linux: {'; '.join(blocker.what for blocker in found.blockers)}")
    yield backend
    backend.close()


@pytest.mark.parametrize("before", [0, 3])
def test_a_zygote_that_was_killed_is_replaced_at_once(backend, before):
    """Whether it has a clone ahead (after two requests) or not."""
    plan = backend.plan(SandboxSpec())
    for _ in range(before):
        backend.launch(plan).kill()
    for _ in range(5):
        # Not waited for: that it is dead shows on its socket first, or not yet.
        os.kill(backend._nurseries["none"].pid, signal.SIGKILL)
        wall = backend.launch(plan)
        assert wall.alive()
        wall.kill()
