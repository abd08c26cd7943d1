"""What both makers of sandboxes do for forks that share: a layer is put on a disk, and lent."""

import errno
from collections.abc import Sequence

from agentd.sandbox.backends.helper import Helper


class LayerMaker(Helper):
    """``guest/zygote/restack.py`` is the other end."""

    def stack(
        self, namespaces: Sequence[int], disk: int, size: int, inodes: int
    ) -> tuple[tuple[int, int], int]:
        """Put the layer to come on a sandbox's disk: ``size`` bytes and ``inodes`` are left for it.

        ``namespaces`` are that of mounts in which the disk is, and, where another, a pidfd of the
        process that sees it. Returns a namespace and a tree that hold what was there, and what
        ``lend`` would of those; all the caller's to close. Raises OSError, SandboxError.
        """
        request: dict[str, object] = {"layer": "freeze", "size": size, "inodes": inodes}
        namespace, tree, lent = self._ask_of_layer(request, (disk, *namespaces))
        return (namespace, tree), lent

    def lend(self, held: tuple[int, int]) -> int:
        """A detached mount of what ``stack`` returned, the caller's to close. Raises OSError,
        SandboxError."""
        (lent,) = self._ask_of_layer({"layer": "lend"}, held)
        return lent

    def _ask_of_layer(self, request: dict[str, object], fds: Sequence[int]) -> list[int]:
        with self._lock:
            self._wait_ready()
            number = self._next_number()
            self._send({"n": number, **request}, fds)
            answer, got = self._receive(self._control, number)
        if "error" in answer:
            code = answer.get("errno")
            raise OSError(code if isinstance(code, int) else errno.EIO, str(answer["error"]))
        return got
