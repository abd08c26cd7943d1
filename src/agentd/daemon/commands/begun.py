"""What a template has begun in a sandbox, found again once that is somebody's."""

import contextlib

from agentd.daemon.commands.again import BeginAgain
from agentd.daemon.commands.command import Command
from agentd.daemon.commands.listed import Listed
from agentd.daemon.sandboxes.live import Live
from agentd.model.errors import AgentdError
from agentd.sandbox.journal.journals import Journals

#: By which it is listed.
TAG = "start"


def found(live: Live, journals: Journals) -> Command | None:
    """Return it, from the oldest output that is kept on; None where there is nothing of it."""
    begun = live.handle.begun
    if begun is None:
        return None
    place = f"{live.id}/{begun.id}"
    listed = Listed(
        begun.id, live, begun.argv, journals.create(place), tag=TAG, started=begun.began
    )
    try:
        return Command(live.handle, BeginAgain(live.handle, begun.id, (0, 0)), None, listed)
    except (AgentdError, OSError):  # it has ended, and the agent has forgotten it
        listed.errands.close()
        with contextlib.suppress(OSError):
            journals.remove(place)
        return None
