"""The backend against a zygote that is killed."""

import contextlib
import os
import signal

import pytest

from agentd.model.configuration import USUAL
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
        killed = kill(backend)
        # Not waited for: that it is dead shows on its socket first, or not yet.
        backend.launch(plan).kill()
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
        wall = backend.launch(plan)
        assert wall.alive()
        wall.kill()


@pytest.mark.parametrize("before", [0, 3])
def test_one_that_dies_with_its_zygote_is_not_handed_out(backend, before, monkeypatch):
    """It is ready and has said so, and its zygote dies before the caller has it."""
    plan = backend.plan(SandboxSpec())
    for _ in range(before):
        backend.launch(plan).kill()
    build, killed = backend._wall, []

    def die(*made):
        wall = build(*made)
        monkeypatch.undo()
        killed.append(kill(backend))
        os.waitid(os.P_PID, killed[0], os.WEXITED | os.WNOWAIT)
        return wall

    monkeypatch.setattr(backend, "_wall", die)
    wall = backend.launch(plan)
    assert wall.alive()
    assert backend._nurseries["none", USUAL].pid not in killed
    wall.kill()


def kill(backend):
    pid = backend._nurseries["none", USUAL].pid
    os.kill(pid, signal.SIGKILL)
    return pid
