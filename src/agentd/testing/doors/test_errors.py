"""What a refusal says: a code for programs, what happened for people, and the way out."""

import re
from collections.abc import Callable

import pytest

from agentd.testing.doors.daemon import ORDINARY, Daemon, Place
from agentd.testing.doors.driver import Driver, Refusal
from agentd.testing.doors.operations import INSIDE, JUDGED, OPERATIONS, Operation, refused


def _first(door: Driver, *among: Operation) -> Operation:
    for operation in among:
        if operation.name in door.claims and operation.name != "kill":
            return operation
    pytest.skip(f"{door.door} carries nothing that is refused so")


def _nobody(door: Driver, daemon: Daemon, alice: Place, denied: Place) -> Refusal:
    return refused(door, _first(door, *OPERATIONS), None, alice)


def _forbidden(door: Driver, daemon: Daemon, alice: Place, denied: Place) -> Refusal:
    operation = _first(door, *OPERATIONS)
    lacking = [scope for scope in ORDINARY if scope != operation.scope]
    return refused(door, operation, daemon.key(alice.principal, *lacking), alice)


def _not_found(door: Driver, daemon: Daemon, alice: Place, denied: Place) -> Refusal:
    return refused(door, _first(door, *INSIDE), daemon.key("bob"), alice)


def _policy_denied(door: Driver, daemon: Daemon, alice: Place, denied: Place) -> Refusal:
    return refused(door, _first(door, *JUDGED), daemon.key("denied"), denied)


KINDS: dict[str, Callable[[Driver, Daemon, Place, Place], Refusal]] = {
    "unauthenticated": _nobody,
    "forbidden": _forbidden,
    "not_found": _not_found,
    "policy_denied": _policy_denied,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_tells_what_and_how_to_mend_it(
    door: Driver, daemon: Daemon, alice: Place, denied: Place, kind: str
) -> None:
    refusal = KINDS[kind](door, daemon, alice, denied)
    assert re.fullmatch(r"[a-z][a-z0-9_]*", refusal.code)
    assert refusal.message.strip() and "Traceback" not in refusal.message
    assert refusal.remediation.strip(), "what to do about it"
