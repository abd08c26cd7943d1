"""A client that hangs up: its command ends, or goes on by itself, as the door says."""

import os
from typing import Any

import pytest

from agentd.testing.doors.daemon import Daemon, Place
from agentd.testing.doors.driver import Driver


@pytest.mark.claims("run_and_hang_up")
def test_what_its_client_waited_for_ends_or_goes_on_as_the_door_says(
    door: Driver, daemon: Daemon, alice: Place
) -> None:
    assert door.hanging_up in ("ends", "detaches"), "the driver says which"
    name = f"hung-up-{os.urandom(4).hex()}"
    script = f": > {name}; while [ ! -e {name}-go ]; do sleep 0.05; done; : > {name}-done"

    def runs() -> None:
        path = alice.path(name)
        daemon.until(lambda: daemon.file(alice.sandbox, path) == b"", "the command's begin")

    door.run_and_hang_up(daemon.key(alice.principal), alice.sandbox, ["sh", "-c", script], runs)
    if door.hanging_up == "ends":
        daemon.until(lambda: not _running(daemon, alice, name), "the end of the command")
        assert daemon.file(alice.sandbox, alice.path(f"{name}-done")) is None
    else:
        daemon.put(alice.sandbox, f"{name}-go", b"")
        done = alice.path(f"{name}-done")
        daemon.until(lambda: daemon.file(alice.sandbox, done) == b"", "its doing all it had to do")


def _running(daemon: Daemon, place: Place, name: str) -> list[Any]:
    """Those of its commands that wait for nobody any more, and run."""
    found = daemon.json("GET", f"/v1/sandboxes/{place.sandbox}/processes?limit=1000")
    return [one for one in found if one["state"] == "running" and name in "".join(one["argv"])]
