"""What a volume is, and the words that refuse one."""

import os
from typing import NamedTuple

import msgspec

from agentd.model.api import VolumeView
from agentd.model.errors import Conflict, NotFound
from agentd.model.like import like

FORMAT = 1
DATA = "data"
#: Who has one while it is copied.
SNAPSHOT = "snapshot"
_NAMED = 8  # of those that have it, in a refusal


class VolumeAbout(msgspec.Struct, frozen=True):
    """``first_id`` stands for the sandbox's user on disk, and those after it for the other ids of
    a sandbox; None where sandboxes are the caller."""

    name: str
    principal: str
    created: float
    first_id: int | None = None
    format: int = FORMAT


class Volume(NamedTuple):
    """``users`` are the sandboxes that have it now, by their ids."""

    about: VolumeAbout
    path: str
    users: tuple[str, ...] = ()

    @property
    def data(self) -> str:
        return os.path.join(self.path, DATA)


def view(volume: Volume) -> VolumeView:
    """A volume as the contract has it."""
    sandboxes = tuple(user for user in volume.users if user != SNAPSHOT)
    return like(VolumeView, volume.about, sandboxes=sandboxes)


def none_called(name: str) -> NotFound:
    return NotFound(
        f"there is no volume {name!r}",
        remediation=f"agentd volume ls lists yours; agentd volume create {name} makes it",
    )


def in_use(volume: Volume, how: str = "in use") -> Conflict:
    who = volume.users
    more = f" and {len(who) - _NAMED} more" if len(who) > _NAMED else ""
    return Conflict(
        f"volume {volume.about.name} is {how}",
        cause=f"by {', '.join(who[:_NAMED])}{more}",
        remediation="end them first: agentd kill",
    )
