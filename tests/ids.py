"""Ranges of user ids that no other process has which tests at the same time, of whatever run."""

import os

from agentd.sandbox.backends.identity import SIZE, START, Range

# The first is beyond what agentd gives by itself, and the last below the kernel's last id.
_FIRST, _PLACES, _EACH = 4000, 1900, 16


def own(place: int, blocks: int) -> Range:
    """At most 16 blocks; ``place`` tells those who ask in one process apart, 4 at most."""
    number = (4 * os.getpid() + place) % _PLACES
    return Range(START + (_FIRST + _EACH * number) * SIZE, blocks)
