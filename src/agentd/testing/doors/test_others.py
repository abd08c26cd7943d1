"""Whose it is: another's sandbox does not exist."""

import copy

import pytest

from agentd.testing.doors.daemon import Daemon, Place
from agentd.testing.doors.driver import Driver
from agentd.testing.doors.operations import INSIDE, NOWHERE, Operation, refused

each = pytest.mark.parametrize("operation", INSIDE, ids=lambda one: one.name)


@each
def test_anothers_sandbox_is_as_one_that_never_was(
    door: Driver, daemon: Daemon, alice: Place, operation: Operation
) -> None:
    bob = daemon.key("bob")
    theirs = refused(door, operation, bob, alice)
    nobodys = refused(door, operation, bob, elsewhere(alice))
    assert (theirs.code, nobodys.code) == ("not_found", "not_found")
    told = [
        said.replace(alice.sandbox, NOWHERE).replace(alice.spare(), NOWHERE)
        for said in (theirs.message, theirs.cause, theirs.remediation)
    ]
    assert told == [nobodys.message, nobodys.cause, nobodys.remediation]


def elsewhere(place: Place) -> Place:
    """The same requests, for a sandbox that is not there."""
    found = copy.copy(place)
    found.sandbox = NOWHERE
    process = place.wrote()
    for name in ("wrote", "reads"):
        setattr(found, name, lambda: process)
    setattr(found, "spare", lambda: NOWHERE)  # noqa: B010  # a method of this one alone
    return found


@pytest.mark.claims("sandboxes")
def test_the_list_has_ones_own_alone(door: Driver, daemon: Daemon, alice: Place) -> None:
    assert alice.sandbox in door.sandboxes(daemon.key(alice.principal))
    assert alice.sandbox not in door.sandboxes(daemon.key("bob"))
