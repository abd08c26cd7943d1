"""Room on a new sandbox's disk that counts as its memory, though its host writes there.

``guest/zygote/reserve.py`` is the other end.
"""

import contextlib
import itertools
import socket
from collections.abc import Iterator, Sequence

from agentd.guest.zygote.messages import MAX_MESSAGE
from agentd.guest.zygote.reserve import MAX_STRETCHES
from agentd.linux.cgroup import Group
from agentd.model.errors import SandboxError
from agentd.model.system import os_errors_as
from agentd.sandbox.backends.cgroups import let_in
from agentd.sandbox.backends.child import receive, send
from agentd.sandbox.backends.linux.layers import LayerMaker

_WHO = "reserver"
_SECONDS = 60.0  # for a gigabyte on a starved machine
#: From where, and how many bytes.
Stretches = Sequence[tuple[int, int]]


class Reserve:
    """One process of ours in the group, from ``begin`` until it is closed. Not thread-safe."""

    def __init__(self, maker: LayerMaker, group: Group) -> None:
        self._maker, self._group = maker, group
        self._sock: socket.socket | None = None

    def begin(self) -> None:
        """Raises SandboxError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, os_errors_as(SandboxError, "no room can be taken for the files of a copy"):
                self._maker.reserve(theirs)
            let_in(ours, self._group)
        except BaseException:
            ours.close()
            raise
        self._sock = ours

    def take(self, files: Sequence[tuple[int, Stretches]]) -> None:
        """Take the stretches of each file, a descriptor; ``reserve.MAX_FILES`` at most.

        Raises OSError where the disk is full, and SandboxError, Ended for a limit of memory.
        """
        fds, wanted = [fd for fd, _ in files], [stretches for _, stretches in files]
        if sum(map(len, wanted)) <= MAX_STRETCHES:
            self._take(fds, wanted)
            return
        for fd, stretches in files:
            rest = iter(stretches)
            while some := tuple(itertools.islice(rest, MAX_STRETCHES)):
                self._take([fd], [some])

    def close(self) -> None:
        """Has the process end; idempotent."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def _take(self, fds: Sequence[int], wanted: Sequence[Stretches]) -> None:
        if self._sock is None or not fds:
            return
        send(self._sock, {"room": wanted}, fds, _WHO, MAX_MESSAGE)
        answer, _ = receive(self._sock, _SECONDS, _WHO)
        if "error" in answer:
            code = answer.get("errno")
            raise OSError(code if isinstance(code, int) else 0, str(answer["error"]))


@contextlib.contextmanager
def reserve(maker: LayerMaker, group: Group | None) -> Iterator[Reserve | None]:
    """Yields None where no group counts memory."""
    if group is None or "memory" not in group.controllers:
        yield None
        return
    with contextlib.closing(Reserve(maker, group)) as taken:
        yield taken
