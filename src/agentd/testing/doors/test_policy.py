"""What the policy says: denied and undecided are different answers, and nothing of it is done."""

import pytest

from agentd.testing.doors.daemon import Daemon, Place
from agentd.testing.doors.driver import Driver
from agentd.testing.doors.operations import JUDGED, Operation, refused

judged = pytest.mark.parametrize("operation", JUDGED, ids=lambda one: one.name)


@judged
def test_what_the_policy_denies_is_told_as_denied(
    door: Driver, daemon: Daemon, denied: Place, operation: Operation
) -> None:
    refusal = refused(door, operation, daemon.key("denied"), denied)
    assert refusal.code == "policy_denied"
    assert "suite.denied" in f"{refusal.message} {refusal.cause}", "the rule that said so"
    assert daemon.file(denied.sandbox, denied.path("done")) is None


@judged
def test_what_the_policy_cannot_decide_is_told_as_undecided(
    door: Driver, daemon: Daemon, undecided: Place, operation: Operation
) -> None:
    refusal = refused(door, operation, daemon.key("undecided"), undecided)
    assert refusal.code == "policy_undecided"
    assert daemon.file(undecided.sandbox, undecided.path("done")) is None
