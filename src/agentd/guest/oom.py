"""Who dies first when memory runs out: commands, and the agent last."""

import os
from typing import Protocol

_PATH = "/proc/self/oom_score_adj"
_CHILD = 500
_EXEMPT = -1000


class SpawnContext(Protocol):
    """A context around the start of a command."""

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None: ...

    def close(self) -> None: ...


class OomScore:
    """A context in which a forked child gets a command's OOM score; the agent keeps its own.

    The agent takes the score on itself and puts it back, so that a child has it from its first
    instruction on. The file is opened at once: later Landlock may forbid it, to commands too.
    """

    def __init__(self) -> None:
        self._fd = -1
        try:
            self._fd = os.open(_PATH, os.O_RDWR | os.O_CLOEXEC)
            own = int(os.read(self._fd, 16))
        except (OSError, ValueError):
            own = _CHILD
        self._own = b"%d" % own
        # An exempt agent's commands are as any process; others' are ahead of it.
        self._child = b"0" if own == _EXEMPT else b"%d" % max(own, _CHILD)

    def __enter__(self) -> None:
        self._set(self._child)

    def __exit__(self, *exc: object) -> None:
        self._set(self._own)

    def close(self) -> None:
        """Closes its descriptor; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _set(self, score: bytes) -> None:
        if self._fd < 0 or self._own == self._child:
            return
        try:
            os.pwrite(self._fd, score, 0)
        except OSError:
            self.close()  # not ours to change: every score is the same then
