"""The terminator's process, its control socket as descriptor 3, and as descriptor 4 what the relay
has there.

The first message is ``{"user": ID or null, "roots": [PATHS]}``, the answer ``{"ready": [what
holds]}`` or ``{"error": TEXT}``. Then, from the host: ``relay`` with a socket, ``admit``, ``set``,
``release``, ``cassette`` with a file, ``count_for``, ``going_on``, ``sync`` (``terminator``); to
it: ``rows`` and ``synced`` (``records``). It ends when the host's end is closed.
"""

import asyncio
import encodings.idna  # noqa: F401  (what would be imported once nothing can be)
import socket
from typing import Any

from agentd.egress import rows
from agentd.egress.mark import Mark
from agentd.egress.terminator.confine import confine
from agentd.egress.terminator.ends import client_context, upstream_context
from agentd.egress.terminator.marking import task_factory
from agentd.egress.terminator.rehearsal import rehearse
from agentd.egress.terminator.terminator import Terminator

_MAX_ROOTS = 16 << 20


def main() -> None:
    """Run the terminator; never returns."""
    loop, terminator = rows.begin(_prepare)
    loop.run_until_complete(terminator.serve())


def _prepare(
    control: socket.socket, first: dict[str, Any], mark: Mark
) -> tuple[tuple[asyncio.AbstractEventLoop, Terminator], list[str]]:
    loop = asyncio.new_event_loop()
    client, upstream = client_context(), upstream_context(_roots(first["roots"]))
    loop.run_until_complete(rehearse(client))
    loop.set_task_factory(task_factory(mark))
    terminator = Terminator(control, client, upstream, mark)
    return (loop, terminator), confine(first["user"])


def _roots(paths: list[str]) -> str:
    """The certificates that the host trusts. Raises OSError."""
    texts = []
    for path in paths:
        with open(path, "rb") as file:
            texts.append(file.read(_MAX_ROOTS).decode("ascii", "replace"))
    return "\n".join(texts)
