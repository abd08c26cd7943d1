"""What a volume is, and the words that refuse one."""

import os
from typing import NamedTuple

import msgspec

from agentd.linux import disk, privileges
from agentd.model.api import VolumeView
from agentd.model.errors import Conflict, InvalidInput, NotFound, Refused
from agentd.model.typed import like
from agentd.model.units import parse_size, readable_size
from agentd.sandbox.backends import identity

FORMAT = 1
DATA, IMAGE = "data", "disk.img"
MIN_SIZE = 32 << 20  # less is most of it what a file system keeps of itself
#: Who has one while it is copied.
SNAPSHOT = "snapshot"
_BLOCK = 4096
_NAMED = 8  # of those that have it, in a refusal


class VolumeAbout(msgspec.Struct, frozen=True):
    """``first_id`` stands for the sandbox's user on disk, and those after it for the other ids of
    a sandbox; None where sandboxes are the caller."""

    name: str
    principal: str
    created: float
    first_id: int | None = None
    size: int | None = None  # of the file system that it has of its own, in ``IMAGE``
    format: int = FORMAT


class Volume(NamedTuple):
    """``users`` are the sandboxes that have it now, by their ids."""

    about: VolumeAbout
    path: str
    users: tuple[str, ...] = ()

    @property
    def data(self) -> str:
        return os.path.join(self.path, DATA)

    @property
    def image(self) -> str:
        """Returns its disk's path; empty without a size."""
        return "" if self.about.size is None else os.path.join(self.path, IMAGE)


def size_of(size: str | int | None) -> int | None:
    """Returns whole bytes. Raises InvalidInput, Refused where nothing can hold a volume to it."""
    if size is None:
        return None
    asked = parse_size(size, "size", MIN_SIZE)
    found = asked // _BLOCK * _BLOCK
    if found < MIN_SIZE:
        raise InvalidInput(
            f"a size of {readable_size(asked)} is too little for a volume",
            remediation=f"give at least {readable_size(MIN_SIZE)}",
        )
    why = identity.hindrance()
    if not why and not privileges.may_mount():
        why = "root here lacks CAP_SYS_ADMIN"
    fix = "leave the size out, or run agentd as root"
    if not why and disk.program() is None:
        why, fix = "mke2fs is not installed", "leave the size out, or apt-get install e2fsprogs"
    if not why and (why := disk.hindrance()):
        fix = (
            "leave the size out, or modprobe loop; a container is given devices by who starts it, "
            "a service by DeviceAllow= in its unit"
        )
    if why:
        raise Refused("the size of a volume cannot be enforced here", cause=why, remediation=fix)
    return found


def view(volume: Volume) -> VolumeView:
    """Returns a volume as the contract has it."""
    sandboxes = tuple(user for user in volume.users if user != SNAPSHOT)
    return like(VolumeView, volume.about, sandboxes=sandboxes)


def none_called(name: str) -> NotFound:
    return NotFound(
        f"there is no volume {name!r}",
        remediation="agentd volume ls lists yours",
    )


def in_use(volume: Volume, how: str = "in use") -> Conflict:
    who = volume.users
    more = f" and {len(who) - _NAMED} more" if len(who) > _NAMED else ""
    return Conflict(
        f"volume {volume.about.name} is {how}",
        cause=f"by {', '.join(who[:_NAMED])}{more}",
        remediation="end them first: agentd kill",
    )
