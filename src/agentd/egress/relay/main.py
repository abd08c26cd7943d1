"""The relay's process: ``python -I -S -E``, its control socket as descriptor 3, and as descriptor 4
a file of eight bytes, which tells whom it works for.

The first message is ``{"user": ID or null}``, the answer ``{"ready": [what holds]}`` or
``{"error": TEXT}``. Then, from the host: ``admit`` with sockets, ``set``, ``release``, ``sync``,
``servers``, ``terminator`` with the socket to that (``relay``); to it: ``rows`` and ``synced``
(``records``). It ends when the host's end is closed.
"""

import mmap
import os
import socket
from typing import Any

from agentd.egress import rows
from agentd.egress.relay.confine import confine
from agentd.egress.relay.loop import MARK_BYTES, Mark
from agentd.egress.relay.relay import Relay
from agentd.egress.relay.routes import KernelRoutes

MARK_FD = 4


def map_mark(fd: int) -> Mark:
    """The memory of a file that the host reads; the descriptor is closed. Raises OSError."""
    try:
        return memoryview(mmap.mmap(fd, MARK_BYTES)).cast("Q")
    finally:
        os.close(fd)


def main() -> None:
    """Never returns."""
    rows.begin(_prepare, fds=2).serve()


def _prepare(control: socket.socket, first: dict[str, Any]) -> tuple[Relay, list[str]]:
    return Relay(control, KernelRoutes(), map_mark(MARK_FD)), confine(first["user"])
