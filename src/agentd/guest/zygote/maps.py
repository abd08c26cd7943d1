"""The id maps of a clone that gets more ids than its own: the zygote writes them, which may.

A clone may map its own id by itself (``process.map_ids``), and no other: that takes CAP_SETUID in
the namespace above.
Standard library only.
"""

import socket

from agentd.linux import process
from agentd.linux.kernel import KERNEL
from agentd.linux.waiting import is_ready

# It only has to run: this is for a machine that hardly does.
_SECONDS = 60.0


class Maps:
    """Made before the clone, by the zygote; each of both then calls one method, and once.

    Each line is an id inside, what it is in the zygote's namespace, and how many there are of both
    from these on.
    """

    def __init__(self, *lines: tuple[int, int, int]) -> None:
        self._text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in lines)
        self._zygotes, self._clones = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def close(self) -> None:
        self._zygotes.close()
        self._clones.close()

    def await_written(self) -> None:
        """In the clone. Raises OSError where its ids could not be mapped."""
        self._zygotes.close()
        with self._clones:
            process.set_dumpable(True)  # otherwise the files of its /proc are the machine's root's
            self._clones.send(b"r")
            if self._clones.recv(1) != b"m":
                raise PermissionError("its ids could not be mapped")

    def write(self, pid: int) -> None:
        """In the zygote. Raises OSError, also for a clone that has ended meanwhile."""
        self._clones.close()
        with self._zygotes:
            if not is_ready(self._zygotes, _SECONDS) or self._zygotes.recv(1) != b"r":
                raise ChildProcessError("the clone ended before its ids were mapped")
            for name in ("gid_map", "uid_map"):
                KERNEL.write(f"/proc/{pid}/{name}", self._text)
            self._zygotes.send(b"m")
