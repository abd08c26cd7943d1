"""Maps an ordinary user's subordinate ids in the zygote's namespace (``linux/subids``).

newuidmap(1) is set-id: it has to run outside of the namespace, without no_new_privs, and as a child
of somebody who is no PID 1 of another namespace yet. So a child is forked before that is made, and
told when it is. Standard library only.
"""

import os
import socket
from typing import NoReturn

from agentd.linux import subids

_MOST_BYTES = 4096


class SubidMapper:
    """0 inside is the caller, and 1 to ``many`` are the subordinate ids from ``uids`` and ``gids``
    on. ``map`` is called once."""

    def __init__(self, many: int, uids: int, gids: int) -> None:
        """Raises OSError."""
        process_id = os.getpid()
        self._ours, theirs = socket.socketpair()
        self._child = os.fork()
        if self._child == 0:
            self._ours.close()
            own = os.geteuid(), os.getegid()
            _map_when_told(theirs, process_id, own, (many, uids, gids))
        theirs.close()

    def map(self) -> None:
        """After the namespace was made: have all of its ids, and no group of the caller's but its
        own. Raises OSError with the program's words."""
        with self._ours:
            self._ours.send(b"m")
            said = self._ours.recv(_MOST_BYTES).decode(errors="replace")
        os.waitpid(self._child, 0)
        if said != "mapped":
            raise PermissionError(f"subordinate ids cannot be mapped: {said or 'no answer'}")
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def _map_when_told(
    sock: socket.socket, target: int, own: tuple[int, int], given: tuple[int, int, int]
) -> NoReturn:
    said = "it was not asked to"
    try:
        if sock.recv(1) == b"m":
            (uid, gid), (many, uids, gids) = own, given
            subids.map_ids(target, [(0, uid, 1), (1, uids, many)], [(0, gid, 1), (1, gids, many)])
            said = "mapped"
    except Exception as error:
        said = str(error) or type(error).__name__
    finally:
        sock.send(said.encode()[:_MOST_BYTES])
        os._exit(0)
