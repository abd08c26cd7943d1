"""Streams to a machine, for as long as it lives and no longer."""

import socket
import time
from collections.abc import Callable

from agentd.model.errors import BackendLost
from agentd.transport.dial import dial

# A connection that a monitor holds for a guest without a driver may never be answered: it is given
# up and asked for again (github.com/firecracker-microvm/firecracker#1253), each time after twice as
# long, for a guest may also be slow.
_PATIENCE = 1.0
_LEAST_SECONDS = 0.05


def open_stream(address: str, seconds: float, check: Callable[[], None]) -> socket.socket:
    """``check`` raises once the machine has ended: nobody else would ever answer there.

    Raises what that raises, and BackendLost.
    """
    deadline, patience = time.monotonic() + seconds, _PATIENCE
    while True:
        check()
        left = deadline - time.monotonic()
        try:
            return dial(address, max(min(patience, left), _LEAST_SECONDS))
        except BackendLost:
            if time.monotonic() >= deadline:
                raise
        patience *= 2
