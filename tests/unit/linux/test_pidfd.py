"""A process by its descriptor."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from agentd.linux.pidfd import Pidfd


@pytest.fixture
def sleeper() -> "Iterator[subprocess.Popen[bytes]]":
    with subprocess.Popen(["sleep", "600"]) as child:
        yield child
        child.kill()


def test_it_is_waited_for_and_killed(sleeper: "subprocess.Popen[bytes]") -> None:
    process = Pidfd(os.pidfd_open(sleeper.pid))
    assert not process.wait(0)
    assert not process.wait(0.01)
    process.kill()
    assert process.wait(120)
    assert sleeper.wait() == -signal.SIGKILL
    process.kill()
    process.close()


def test_once_closed_it_counts_as_ended_and_nobody_is_killed(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    process = Pidfd(os.pidfd_open(sleeper.pid))
    other = process.duplicate()
    assert not os.get_inheritable(other)
    process.close()
    process.close()
    assert process.wait(0)
    process.kill()
    with pytest.raises(ProcessLookupError):
        process.duplicate()
    again = Pidfd(other)
    assert not again.wait(0)
    again.close()


def test_who_waits_does_so_to_the_end_although_it_is_closed(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    process = Pidfd(os.pidfd_open(sleeper.pid))
    found: list[bool] = []
    waiter = threading.Thread(target=lambda: found.append(process.wait(120)))
    waiter.start()
    while not os.path.exists(f"/proc/self/task/{waiter.native_id}"):
        pass
    waiter.join(0.05)
    process.close()
    assert not found
    sleeper.kill()
    waiter.join()
    assert found == [True]


def test_one_that_is_dropped_is_closed(sleeper: "subprocess.Popen[bytes]") -> None:
    fd = os.pidfd_open(sleeper.pid)
    process = Pidfd(fd)
    del process
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
