"""What is written down: one start and one end of each operation, by who asked for it."""

from collections.abc import Mapping
from typing import Any

import pytest

from agentd.testing.doors.daemon import ORDINARY, Daemon, Place
from agentd.testing.doors.driver import Driver
from agentd.testing.doors.operations import LASTING, Operation, refused

lasting = pytest.mark.parametrize("operation", LASTING, ids=lambda one: one.name)


@lasting
def test_there_is_one_start_and_one_end(
    door: Driver, daemon: Daemon, alice: Place, operation: Operation
) -> None:
    before = daemon.head()
    operation.ask(door, daemon.key(alice.principal), alice)
    daemon.until(lambda: "end" in _begun(daemon, before, alice), "the end in the audit log")
    daemon.settle(alice.sandbox)
    assert _begun(daemon, before, alice) == ["start", "end"]
    assert {one["capability"] for one in _since(daemon, before, alice.principal, "start")} == {
        operation.act
    }


@lasting
def test_what_is_refused_has_no_start_and_one_denial(
    door: Driver, daemon: Daemon, alice: Place, operation: Operation, number: int
) -> None:
    # One of this door's own: of somebody who is refused all the time not each denial is written.
    who = f"refused-{number}"
    key = daemon.key(who, *(scope for scope in ORDINARY if scope != operation.scope))
    before = daemon.head()
    refused(door, operation, key, alice)
    daemon.until(lambda: bool(_since(daemon, before, who, "denial")), "the denial")
    daemon.settle(alice.sandbox)  # a second one would be behind it
    assert len(_since(daemon, before, who, "start", "denial")) == 1


def _since(daemon: Daemon, after: int, who: str, *kinds: str) -> list[Mapping[str, Any]]:
    return [one for one in daemon.records(after, who) if one["kind"] in kinds]


def _begun(daemon: Daemon, after: int, place: Place) -> list[str]:
    """Of what has begun since then: an end may be written a moment after its answer, and so those
    of what was asked before may come now."""
    found = _since(daemon, after, place.principal, "start", "end")
    begun = {one["request"] for one in found if one["kind"] == "start"}
    return [one["kind"] for one in found if one["request"] in begun]
