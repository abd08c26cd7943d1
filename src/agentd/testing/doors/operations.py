"""What doors may carry, each as it is asked of a driver; the cases of callers, scopes and policies
are asked of all of them."""

from collections.abc import Callable
from signal import SIGWINCH
from typing import NamedTuple

import pytest

from agentd.testing.doors.daemon import Place
from agentd.testing.doors.driver import Driver, Refusal

Ask = Callable[[Driver, str | None, Place], object]
#: A name that no sandbox has.
NOWHERE = "sbx-zzzzzzzzzzzz"


class Operation(NamedTuple):
    """``scope`` is what it needs; ``act`` what a policy and the audit log know it as, where they
    are asked; ``lasts``: it has a start and an end in the log."""

    name: str
    scope: str
    ask: Ask
    act: str = ""
    lasts: bool = False
    inside: bool = True


OPERATIONS = (
    Operation("sandboxes", "read", lambda door, key, _: door.sandboxes(key), inside=False),
    Operation(
        "create", "create", lambda door, key, _: door.create(key), "sandbox.create.v1", inside=False
    ),
    Operation("kill", "create", lambda door, key, place: door.kill(key, place.spare())),
    Operation(
        "run",
        "run",
        lambda door, key, place: door.run(key, place.sandbox, ["touch", "done"]),
        "shell.exec.v1",
        lasts=True,
    ),
    Operation(
        "start",
        "run",
        lambda door, key, place: door.start(key, place.sandbox, ["touch", "done"]),
        "shell.exec.v1",
        lasts=True,
    ),
    Operation(
        "output",
        "read",
        lambda door, key, place: door.output(key, place.sandbox, place.wrote(), "stdout", 0),
    ),
    Operation(
        "write",
        "run",
        lambda door, key, place: door.write(key, place.sandbox, place.reads(), b"x", eof=False),
    ),
    Operation(
        "signal",
        "run",
        lambda door, key, place: door.signal(key, place.sandbox, place.reads(), SIGWINCH),
    ),
    Operation(
        "result", "read", lambda door, key, place: door.result(key, place.sandbox, place.wrote())
    ),
    Operation(
        "read_file",
        "read",
        lambda door, key, place: door.read_file(key, place.sandbox, place.file),
        "fs.read.v1",
        lasts=True,
    ),
    Operation(
        "write_file",
        "files",
        lambda door, key, place: door.write_file(key, place.sandbox, place.path("done"), b""),
        "fs.write.v1",
        lasts=True,
    ),
    Operation(
        "list_files",
        "read",
        lambda door, key, place: door.list_files(key, place.sandbox, place.workspace),
        "fs.list.v1",
    ),
    Operation(
        "call",
        "run",
        lambda door, key, place: door.call(
            key, "shell.exec.v1", {"command": "touch", "args": ["done"]}, place.sandbox
        ),
        "shell.exec.v1",
        lasts=True,
    ),
)
JUDGED = tuple(one for one in OPERATIONS if one.act)
LASTING = tuple(one for one in OPERATIONS if one.lasts)
INSIDE = tuple(one for one in OPERATIONS if one.inside)
# The cheapest first.
_COMMON = ("sandboxes", "list_files", "read_file", "write_file", "call", "run", "create")


def common(door: Driver) -> Operation:
    """One that the door carries, for what is promised of every request."""
    for name in _COMMON:
        if name in door.claims:
            return next(one for one in OPERATIONS if one.name == name)
    pytest.skip(f"{door.door} carries none of {', '.join(_COMMON)}")


def refused(door: Driver, operation: Operation, key: str | None, place: Place) -> Refusal:
    """Ask what must be refused; fails where it is answered."""
    with pytest.raises(Refusal) as caught:
        operation.ask(door, key, place)
    return caught.value
