"""The port: which signed requests were seen already."""

from typing import Protocol


class ReplayTable(Protocol):
    """Thread-safe."""

    def first_use(self, key: str, nonce: str, issued: float) -> bool:
        """Whether ``key`` uses ``nonce`` for the first time; it is taken down in the same step.

        ``issued`` is the instant that the request itself names, in seconds since 1970. When this
        returns True, the nonce outlives the daemon, and the machine's power. Raises RequestStale
        for a request so old that its nonce may be forgotten, Full where there is no room.
        """
