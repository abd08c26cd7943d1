"""What a credential may do: each operation has its scope, the same at every door."""

from collections.abc import Mapping
from typing import Any

import pytest

from agentd.testing.doors.daemon import ORDINARY, Daemon, Place
from agentd.testing.doors.driver import Driver, Refusal
from agentd.testing.doors.operations import OPERATIONS, Operation, refused

every = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
CALLS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "fs.read.v1": ("read", {"path": "there"}),
    "fs.write.v1": ("files", {"path": "done", "content": ""}),
    "shell.exec.v1": ("run", {"command": "true"}),
}


def without(scope: str) -> tuple[str, ...]:
    return tuple(one for one in ORDINARY if one != scope)


@every
def test_without_its_scope_it_is_refused(
    door: Driver, daemon: Daemon, alice: Place, operation: Operation
) -> None:
    key = daemon.key(alice.principal, *without(operation.scope))
    assert refused(door, operation, key, alice).code == "forbidden"


@every
def test_with_its_scope_alone_it_is_answered(
    door: Driver, daemon: Daemon, alice: Place, operation: Operation
) -> None:
    operation.ask(door, daemon.key(alice.principal, operation.scope), alice)


@pytest.mark.claims("call")
@pytest.mark.parametrize("capability", CALLS)
def test_a_call_needs_the_scope_of_its_capability(
    door: Driver, daemon: Daemon, alice: Place, capability: str
) -> None:
    scope, parameters = CALLS[capability]
    lacking = daemon.key(alice.principal, *without(scope))
    with pytest.raises(Refusal) as caught:
        door.call(lacking, capability, parameters, alice.sandbox)
    assert caught.value.code == "forbidden"
    door.call(daemon.key(alice.principal, scope), capability, parameters, alice.sandbox)
