"""The keeper of virtual machines, with shells in place of the monitors and their helpers."""

import contextlib
import os
import resource
import select
from collections.abc import Iterator

import pytest

from agentd.model.errors import SandboxError
from agentd.sandbox.backends import child
from agentd.sandbox.backends.vm.supervisor import Keeper, MachineStatus, StartedProcess

SECONDS = 120.0


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    made = Keeper()
    yield made
    made.close()


def wait(started: StartedProcess) -> None:
    poll = select.poll()
    poll.register(started.pidfd, select.POLLIN)
    assert poll.poll(SECONDS * 1000)
    os.close(started.pidfd)


def end_after_its_helper(keeper: Keeper, told: bytes) -> MachineStatus:
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


def test_no_request_that_fails_ends_it_and_its_machines(keeper: Keeper) -> None:
    reading, writing = os.pipe()
    door = {"door": reading}
    monitor = keeper.start(1, ["/bin/sh", "-c", "read line <&{door} && exit 7"], door)
    os.close(reading)
    for message in (b"no JSON", b"[]", b"{}", b'{"op":"start"}', b'{"op":"start","vm":"1"}'):
        keeper._control.send(message)
        assert "error" in child.receive(keeper._control, SECONDS, "keeper")[0]
    with pytest.raises(SandboxError, match="cannot start it"):
        keeper.start(1, ["/bin/true"], {})
    assert keeper.look(1).running
    os.write(writing, b"end\n")
    os.close(writing)
    wait(monitor)
    assert keeper.end(1).status == 7


def test_a_machine_whose_process_cannot_be_handed_over_is_ended_alone(keeper: Keeper) -> None:
    other = keeper.start(1, ["/bin/sleep", "600"], {})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # No room for the descriptor that comes with the answer, as where the machine's table is full.
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(other.pidfd))
        with pytest.raises(SandboxError, match="no descriptor is left"):
            keeper.start(2, ["/bin/sleep", "600"], {})
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert keeper.look(1).running
    with pytest.raises(SandboxError, match="there is no machine 2"):
        keeper.look(2)
    keeper.end(1)
    wait(other)
