"""The relay's process: ``python -I -S -E``, its control socket as descriptor 3, and as descriptor 4
a file of eight bytes, which tells whom it works for.

The first message is ``{"user": ID or null}``, the answer ``{"ready": [what holds]}`` or
``{"error": TEXT}``. Then, from the host: ``admit`` with sockets, ``set``, ``release``, ``sync``,
``servers``, ``terminator`` with the socket to that (``relay``); to it: ``rows`` and ``synced``
(``records``). It ends when the host's end is closed.
"""

import socket
from typing import Any

from agentd.egress import rows
from agentd.egress.mark import Mark
from agentd.egress.relay.confine import confine
from agentd.egress.relay.relay import Relay
from agentd.egress.relay.routes import KernelRoutes


def main() -> None:
    """Run the relay; never returns."""
    rows.begin(_prepare).serve()


def _prepare(control: socket.socket, first: dict[str, Any], mark: Mark) -> tuple[Relay, list[str]]:
    return Relay(control, KernelRoutes(), mark), confine(first["user"])
