"""Who asks: the door takes nobody at their word, and asks the gatekeeper once a request."""

import pytest

from agentd.testing.doors.daemon import BURST, Daemon, Place
from agentd.testing.doors.driver import Driver, Refusal
from agentd.testing.doors.operations import OPERATIONS, Operation, common, refused

every = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
# As a key looks, and nobody's.
WRONG = "agd_0123456789abcdef_0123456789abcdef0123456789abcdef"


@every
def test_without_credentials_there_is_nothing(
    door: Driver, alice: Place, operation: Operation
) -> None:
    assert refused(door, operation, None, alice).code == "unauthenticated"


@every
def test_with_wrong_credentials_there_is_nothing(
    door: Driver, alice: Place, operation: Operation
) -> None:
    assert refused(door, operation, WRONG, alice).code == "unauthenticated"


def test_a_key_that_was_revoked_opens_nothing_more(
    door: Driver, daemon: Daemon, alice: Place
) -> None:
    operation, key = common(door), daemon.new_key(alice.principal)
    operation.ask(door, key["secret"], alice)
    daemon.revoke(key["id"])
    assert refused(door, operation, key["secret"], alice).code == "unauthenticated"


def test_the_gatekeeper_is_asked_once_a_request(
    door: Driver, daemon: Daemon, alice: Place, hasty: str
) -> None:
    """As many requests as may come at once are answered, and not one more."""
    operation, key = common(door), daemon.key(hasty, "admin")
    said = [answered(door, operation, key, alice) for _ in range(BURST + 1)]
    assert said == [""] * BURST + ["quota_exceeded"]


def test_who_comes_too_fast_is_told_when_to_come_again(
    door: Driver, daemon: Daemon, alice: Place, hasty: str
) -> None:
    operation, key = common(door), daemon.key(hasty, "admin")
    for _ in range(BURST):
        answered(door, operation, key, alice)
    last = refused(door, operation, key, alice)
    assert last.code == "quota_exceeded"
    assert last.retry_after is not None and last.retry_after > 1, last.retry_after


def answered(door: Driver, operation: Operation, key: str, place: Place) -> str:
    """The code of the refusal, "" where there is none."""
    try:
        operation.ask(door, key, place)
    except Refusal as refusal:
        return refusal.code
    return ""
