"""What happens to a principal's sandboxes, as it goes over REST and through the SDK."""

from enum import StrEnum
from typing import Any

import msgspec

from agentd.model.units import parse_wait

MAX_WAIT_SECONDS = 60.0  # for the next event


class EventKind(StrEnum):
    """What an event is about; its ``about`` says more, such as the ``state`` of a process."""

    CREATED = "created"  # a sandbox
    ENDED = "ended"
    RENEWED = "renewed"
    PAUSED = "paused"
    RESUMED = "resumed"
    PROCESS = "process"  # "started" or "ended"
    APPROVAL = "approval"  # "pending", then "approved", "denied", "expired" or "withdrawn"
    DECISION = "decision"  # "denied" or "undecided": what a policy, a scope or a quota refused


class EventView(msgspec.Struct, frozen=True):
    """``id`` grows with time, within one run of the daemon; ``principal`` is whose it is."""

    id: str
    kind: EventKind
    time: float
    principal: str
    sandbox: str = ""
    about: dict[str, Any] = {}


class EventPage(msgspec.Struct, frozen=True):
    """``next`` is what to ask for behind these; ``lost`` where events before them are not kept any
    more, or were a daemon's that has ended: look at the sandboxes themselves. ``first`` is then
    what these come right behind, to ask from there on again."""

    events: tuple[EventView, ...]
    next: str
    lost: bool = False
    first: str = ""


def wait_seconds(wait: str | float) -> float:
    """Read seconds from "30s" or 30; 0 is not to wait. Raises InvalidInput."""
    return parse_wait(wait, MAX_WAIT_SECONDS)
