"""Removing what a sandbox left in its scratch directory, whatever it did to it.

The monitor does it when its host has died, the host otherwise. Standard library only.
"""

import contextlib


def remove(path: str) -> None:
    """Never follows a link, at any depth, closed directories included; never raises.

    Only once nothing runs in it any more: a directory that is closed to its owner is opened.
    """
    from agentd.guest.removal import remove_folder  # late: on the host nothing else needs it

    with contextlib.suppress(OSError):
        remove_folder(path)
