"""What the HTTP machinery knows of a door, and what a door gives when it is mounted."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from agentd.ingest.web.web import Web
from agentd.model.answer import Answer
from agentd.model.errors import AgentdError
from agentd.model.gatekeeper import Gatekeeper

Application = Callable[[Any, Any, Any], Awaitable[None]]  # ASGI 3


class Door:
    """A way in over HTTP. A door subclasses it, and says what its errors look like."""

    def __init__(self, web: Web, gatekeeper: Gatekeeper) -> None:
        self.web = web
        self.gatekeeper = gatekeeper

    def error(self, error: AgentdError) -> Answer:
        """Write an error in the door's own form."""
        raise NotImplementedError

    def message(self, error: AgentdError) -> str | None:
        """Write an error as a text message of an open WebSocket, which is then closed; None: it is
        told by the code of the close alone."""
        return None


class Mount(msgspec.Struct, frozen=True):
    """The application that a door serves, and where: ``paths`` are the door's own, with all below
    them.

    ``"/"`` claims every path. Doors of one listener claim paths that do not meet. ``always`` are
    paths that are answered while agentd drains, too. ``hosted`` is a pattern of whole Host
    headers that are not the door's own, and what answers at those hosts, whatever the path.
    """

    door: Door
    application: Application
    paths: tuple[str, ...]
    always: tuple[str, ...] = ()
    hosted: tuple[re.Pattern[str], Application] | None = None
