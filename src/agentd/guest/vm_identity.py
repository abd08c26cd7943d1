"""As whom the agent of a virtual machine touches files: as its sandbox's user, not as root.

The agent is root, for it must start commands as anyone. But a file that the host writes is the
user's to change, and a path that the host reads is one the user may read: fsuid (setfsuid(2)) is
the agent's usual self, and it is root for as long as a block that says so.
"""

import ctypes

from agentd.guest.oom import SpawnContext

_libc = ctypes.CDLL(None)


class Identity:
    """A context with root's rights over files. May be nested."""

    def __init__(self) -> None:
        self.user = 0
        self._depth = 0

    def become(self, user: int) -> None:
        """Sets who it is outside of blocks, from now on or from the end of the present one."""
        self.user = user
        if not self._depth:
            _set(user)

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            _set(0)

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            _set(self.user)


class AsRoot:
    """Commands are started by root, within another context that a start takes."""

    def __init__(self, identity: Identity, inner: SpawnContext) -> None:
        self._identity = identity
        self._inner = inner

    def __enter__(self) -> None:
        self._identity.__enter__()
        self._inner.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._inner.__exit__(*exc)
        self._identity.__exit__(None, None, None)

    def close(self) -> None:
        self._inner.close()


def _set(user: int) -> None:
    """Never fails for root; the kernel takes or gives the rights over files with it."""
    # Group first: setfsgid needs CAP_SETGID, which goes by the effective uid and so stays.
    _libc.setfsgid(user)
    _libc.setfsuid(user)
