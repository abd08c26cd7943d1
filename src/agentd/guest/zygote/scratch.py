"""Removing what a sandbox left in its scratch directory, whatever it did to it.

The monitor does it when its host has died, the host otherwise. Standard library only.
"""

import contextlib
import os
import stat

_MAX_ATTEMPTS = 10_000


def remove(path: str) -> None:
    """Never follows a link, at any depth, closed directories included; never raises.

    Only once nothing runs in it any more: a directory that is closed to its owner is opened.
    """
    from agentd.guest.operation import RequestError  # late: on the host nothing else needs them
    from agentd.guest.removal import remove_tree

    above, name = os.path.split(path)
    try:
        parent = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for _ in range(_MAX_ATTEMPTS):
            try:
                for _slice in remove_tree(parent, name, path):
                    pass
                return
            except PermissionError as error:
                _open_up(str(error.filename), path)
            except (OSError, RequestError):
                return
    finally:
        os.close(parent)


def _open_up(denied: str, top: str) -> None:
    """Give the owner access to a directory and to the one it is in, no further up than ``top``."""
    for path in {top, denied, os.path.dirname(denied)}:
        if path == top or path.startswith(top + "/"):
            with contextlib.suppress(OSError):
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    os.chmod(path, 0o700)
