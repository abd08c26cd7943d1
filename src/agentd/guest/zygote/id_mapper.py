"""Maps the zygote's ids from outside of its namespace, where only that is allowed.

newuidmap(1) (``linux/subids``) is set-id, and root without CAP_SYS_ADMIN has its capabilities over
ids there alone: both have to stay outside, and to be a child of somebody who is no PID 1 of another
namespace yet. So a child is forked before the namespace is made, and told when it is. Standard
library only.
"""

import os
import socket
from collections.abc import Callable
from typing import NoReturn

_MOST_BYTES = 4096


class IdMapper:
    """The child. ``map`` is called once."""

    def __init__(self, what: str, write: Callable[[], None]) -> None:
        """Forks a child that calls ``write`` when it is told; ``what`` names the ids. Raises
        OSError."""
        self._what = what
        self._ours, theirs = socket.socketpair()
        self._child = os.fork()
        if self._child == 0:
            self._ours.close()
            _write_when_told(theirs, write)
        theirs.close()

    def map(self) -> None:
        """Has this process, which is in its new namespace, be root there, in no other group. Raises
        OSError with what refused the maps."""
        with self._ours:
            self._ours.send(b"m")
            said = self._ours.recv(_MOST_BYTES).decode(errors="replace")
        os.waitpid(self._child, 0)
        if said != "mapped":
            raise PermissionError(f"{self._what} cannot be mapped: {said or 'no answer'}")
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def _write_when_told(sock: socket.socket, write: Callable[[], None]) -> NoReturn:
    said = "it was not asked to"
    try:
        if sock.recv(1) == b"m":
            write()
            said = "mapped"
    except Exception as error:
        said = str(error) or type(error).__name__
    finally:
        try:
            sock.send(said.encode()[:_MOST_BYTES])
        finally:  # also where nobody is there any more: all above us is our parent's to do
            os._exit(0)
