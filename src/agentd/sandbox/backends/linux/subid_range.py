"""The subordinate ids that root of an ordinary user's sandboxes has."""

import os
from typing import NamedTuple

from agentd.linux import subids
from agentd.sandbox.backends import identity


class SubidRange(NamedTuple):
    """``many`` users from ``uids`` on, and as many groups from ``gids`` on. They are 1 to
    ``many`` inside: 0 is the caller."""

    many: int
    uids: int
    gids: int


def own() -> SubidRange | str:
    """Returns the range of this process's user; or why there is none, with the fix. Of an ordinary
    user alone: empty for root, whose sandboxes have blocks of ids."""
    if os.geteuid() == 0:
        return ""
    found = subids.own()
    if isinstance(found, str):
        return found
    many = min(len(found.uids), len(found.gids), identity.SIZE - 1)
    return SubidRange(many, found.uids.start, found.gids.start)
