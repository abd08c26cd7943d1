"""The keeper of virtual machines, with shells in place of the monitors and their helpers."""

import os
import select
from collections.abc import Iterator

import pytest

from agentd.sandbox.backends.vm.supervisor import Keeper, Seen, Started

SECONDS = 20.0


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    made = Keeper()
    yield made
    made.close()


def wait(started: Started) -> None:
    poll = select.poll()
    poll.register(started.pidfd, select.POLLIN)
    assert poll.poll(SECONDS * 1000)
    os.close(started.pidfd)


def end_after_its_helper(keeper: Keeper, told: bytes) -> Seen:
    """How a monitor ended that waits for a line, told one once its helper has ended."""
    reading, writing = os.pipe()
    monitor = keeper.start(1, ["/bin/sh", "-c", "read line <&{door} && exit 7"], {"door": reading})
    os.close(reading)
    wait(keeper.start(1, ["/bin/true"], {}, helper=True))
    os.write(writing, told)
    wait(monitor)
    os.close(writing)
    return keeper.end(1)


def test_a_monitor_that_ends_after_its_helper_ends_with_its_own_status(keeper: Keeper) -> None:
    seen = end_after_its_helper(keeper, b"end\n")
    assert (seen.running, seen.status) == (False, 7)


def test_a_monitor_that_outlives_its_helper_is_ended(keeper: Keeper) -> None:
    seen = end_after_its_helper(keeper, b"")
    assert (seen.running, seen.status) == (False, -9)
    assert "a helper of the machine ended" in seen.console
