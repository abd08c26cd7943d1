"""The terminator's process, its control socket as descriptor 3.

The first message is ``{"user": ID or null, "roots": [PATHS]}``, the answer ``{"ready": [what
holds]}`` or ``{"error": TEXT}``. Then, from the host: ``relay`` with a socket, ``admit``, ``set``,
``release``, ``sync`` (``terminator``); to it: ``rows`` and ``synced`` (``records``). It ends when
the host's end is closed.
"""

import asyncio
import encodings.idna  # noqa: F401  (what would be imported once nothing can be)
import gc
import json
import os
import socket

from agentd.egress.terminator.confine import confine
from agentd.egress.terminator.ends import client_context, upstream_context
from agentd.egress.terminator.rehearsal import rehearse
from agentd.egress.terminator.terminator import Terminator
from agentd.linux import process

CONTROL_FD = 3
_MAX_FIRST = 64 << 10
_MAX_ROOTS = 16 << 20


def main() -> None:
    """Never returns."""
    os.closerange(CONTROL_FD + 1, os.sysconf("SC_OPEN_MAX"))  # what the host forgot to mark
    control = socket.socket(fileno=CONTROL_FD)
    control.set_inheritable(False)
    try:
        first = control.recv(_MAX_FIRST)
        if not first:
            os._exit(0)
        asked = json.loads(first)
        process.raise_file_limit()
        loop = asyncio.new_event_loop()
        client, upstream = client_context(), upstream_context(_roots(asked["roots"]))
        loop.run_until_complete(rehearse(client))
        held = confine(asked["user"])
    except Exception as error:
        control.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        os._exit(1)
    control.send(json.dumps({"ready": held}).encode())
    gc.collect()
    gc.freeze()
    loop.run_until_complete(Terminator(control, client, upstream).serve())


def _roots(paths: list[str]) -> str:
    """The certificates that the host trusts. Raises OSError."""
    texts = []
    for path in paths:
        with open(path, "rb") as file:
            texts.append(file.read(_MAX_ROOTS).decode("ascii", "replace"))
    return "\n".join(texts)
