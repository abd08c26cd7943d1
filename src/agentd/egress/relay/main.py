"""The relay's process: ``python -I -S -E``, its control socket as descriptor 3, and as descriptor 4
a file of eight bytes, which tells whom it works for.

The first message is ``{"user": ID or null}``, the answer ``{"ready": [what holds]}`` or
``{"error": TEXT}``. Then, from the host: ``admit`` with sockets, ``set``, ``release``, ``sync``,
``servers``, ``terminator`` with the socket to that (``relay``); to it: ``rows`` and ``synced``
(``records``). It ends when the host's end is closed.
"""

import gc
import json
import mmap
import os
import socket

from agentd.egress.relay.confine import confine
from agentd.egress.relay.loop import MARK_BYTES, Mark
from agentd.egress.relay.relay import Relay
from agentd.egress.relay.routes import KernelRoutes
from agentd.linux import process

CONTROL_FD, MARK_FD = 3, 4
_MAX_FIRST = 4096


def map_mark(fd: int) -> Mark:
    """The memory of a file that the host reads; the descriptor is closed. Raises OSError."""
    try:
        return memoryview(mmap.mmap(fd, MARK_BYTES)).cast("Q")
    finally:
        os.close(fd)


def main() -> None:
    """Never returns."""
    os.closerange(MARK_FD + 1, os.sysconf("SC_OPEN_MAX"))  # what the host forgot to mark
    control = socket.socket(fileno=CONTROL_FD)
    control.set_inheritable(False)
    try:
        first = control.recv(_MAX_FIRST)
        if not first:
            os._exit(0)
        process.raise_file_limit()
        user = json.loads(first)["user"]
        relay = Relay(control, KernelRoutes(), map_mark(MARK_FD))
        held = confine(user)
    except Exception as error:
        control.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        os._exit(1)
    control.send(json.dumps({"ready": held}).encode())
    gc.collect()
    gc.freeze()
    relay.serve()
