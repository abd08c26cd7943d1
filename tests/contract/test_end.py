"""The suite of every wall, over ours: the end, also one that comes from outside."""

from collections.abc import Callable
from typing import Any

import pytest

from agentd import AgentdError, CauseCode, Sandbox
from agentd.client.embedded_service import EmbeddedService
from agentd.daemon.pipeline import Pipeline
from agentd.model.principal import local
from agentd.testing.walls.test_end import *


@pytest.mark.parametrize("kind", ["qemu", "firecracker"], indirect=True)
def test_close_ends_a_machine(sandbox: Sandbox, handle_of: Callable[[Sandbox], Any]) -> None:
    sandbox.run("(trap '' TERM INT HUP; setsid sleep 1000 >/dev/null 2>&1 &); echo started")
    wall = handle_of(sandbox).wall
    sandbox.close()
    assert not wall.alive()


def test_a_wall_that_dies_is_a_cause_of_its_own(
    sandbox: Sandbox, end_agent: Callable[[Sandbox], None], token: str
) -> None:
    with sandbox.start(f"echo up; sleep {token}") as process:
        chunks = iter(process)
        assert next(chunks).data == b"up\n"
        end_agent(sandbox)
        result = process.wait()
    assert result.cause.code is CauseCode.BACKEND_LOST
    assert result.status == "error"
    assert result.cause.remediation
    with pytest.raises(AgentdError) as caught:
        sandbox.run(["true"])
    assert caught.value.code == "backend_lost"
    sandbox.close()
    assert wait(lambda: not sleepers(token))


def test_a_sandbox_that_was_forgotten_is_ended_with_a_warning(
    make: Callable[..., Sandbox], handle_of: Callable[[Sandbox], Any], pipeline: Pipeline
) -> None:
    who = local("test")
    handle = pipeline.open(who, handle_of(make()).spec)
    service = EmbeddedService(pipeline, who)
    sandbox = Sandbox(service, service.adopt(handle))
    with pytest.warns(ResourceWarning, match=handle.id):
        del sandbox
    assert handle not in pipeline.manager.sandboxes()
