"""A client that hangs up: its command ends, or goes on by itself, as the door says."""

import os

import pytest

from agentd.testing.doors.daemon import Daemon, Place
from agentd.testing.doors.driver import Driver


@pytest.mark.claims("run_and_hang_up")
def test_what_its_client_waited_for_ends_or_goes_on_as_the_door_says(
    door: Driver, daemon: Daemon, alice: Place
) -> None:
    assert door.hanging_up in ("ends", "detaches"), "the driver says which"
    name = f"hung-up-{os.urandom(4).hex()}"
    script = f"echo $$ > {name}; while [ ! -e {name}-go ]; do sleep 0.05; done; : > {name}-done"

    def runs() -> None:
        path = alice.path(name)
        daemon.until(lambda: bool(daemon.file(alice.sandbox, path)), "the command's begin")

    door.run_and_hang_up(daemon.key(alice.principal), alice.sandbox, ["sh", "-c", script], runs)
    done = alice.path(f"{name}-done")
    if door.hanging_up == "ends":
        # the list of processes shows a waited-for one only once its client's end is seen: from
        # inside it is seen whether it lives
        watch = f"read pid < {name}; while kill -0 $pid; do sleep 0.05; done 2> /dev/null"
        watcher = alice.start("sh", "-c", watch)
        daemon.until(lambda: _ended(alice, watcher), "the end of the command")
        daemon.put(alice.sandbox, f"{name}-go", b"")
        assert daemon.file(alice.sandbox, done) is None
    else:
        daemon.put(alice.sandbox, f"{name}-go", b"")
        daemon.until(lambda: daemon.file(alice.sandbox, done) == b"", "its doing all it had to do")


def _ended(place: Place, process: str) -> bool:
    return bool(place.process(process)["state"] == "ended")
