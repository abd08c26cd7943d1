"""What both makers of sandboxes do for copies: a layer is put on a disk, and lent; or room on one
is taken for what is copied."""

import errno
import socket
from collections.abc import Sequence

from agentd.sandbox.backends.helper import Helper


class LayerMaker(Helper):
    """``guest/zygote/restack.py`` and ``reserve.py`` are the other end."""

    def stack(
        self, namespaces: Sequence[int], disk: int, size: int, inodes: int
    ) -> tuple[tuple[int, int], list[int]]:
        """Put the layer to come on a sandbox's disk: ``size`` bytes and ``inodes`` are left for it.

        ``namespaces`` are that of mounts in which the disk is, and, where another, a pidfd of the
        process that sees it. Returns a namespace and a tree that hold what was there, and what
        ``lend`` would of those; all the caller's to close. Raises OSError, SandboxError.
        """
        request: dict[str, object] = {"layer": "freeze", "size": size, "inodes": inodes}
        namespace, tree, *lent = self._ask(request, (disk, *namespaces))
        return (namespace, tree), lent

    def lend(self, held: tuple[int, int]) -> list[int]:
        """Makes a few detached mounts of what ``stack`` returned, the caller's to close. Raises
        OSError, SandboxError."""
        return self._ask({"layer": "lend"}, held)

    def reserve(self, sock: socket.socket) -> None:
        """Have a process go into the group whose doors come at ``sock``, and take there what is
        asked for until that is closed. Raises OSError, SandboxError."""
        self._ask({"reserve": True}, [sock.fileno()])

    def _ask(self, request: dict[str, object], fds: Sequence[int]) -> list[int]:
        with self._lock:
            self._wait_ready()
            number = self._next_number()
            self._send({"n": number, **request}, fds)
            answer, got = self._receive(self._control, number)
        if "error" in answer:
            code = answer.get("errno")
            raise OSError(code if isinstance(code, int) else errno.EIO, str(answer["error"]))
        return got
