"""Who asks: found out before a request takes any room but that for finding out."""

from typing import Any

from agentd.ingest.web.credential import credential_of, is_quick
from agentd.ingest.web.door import Door
from agentd.ingest.web.link import link_of
from agentd.ingest.web.threads import caller
from agentd.model.credential import Credential
from agentd.model.door import DoorService


async def identify(door: Door, scope: Any, credential: Credential | None = None) -> DoorService:
    """Whatever this task asks of rooms from now on is the principal's.

    ``credential`` is for a door that reads another one than ``credential_of`` does. Raises
    Unauthenticated and others for what proves nothing, Full where it has too many connections.
    """
    link = link_of(scope)
    given = credential_of(scope) if credential is None else credential
    caller.set(link.address)
    if is_quick(given):
        service = door.gatekeeper.authenticate(given)
    else:
        service = await door.web.threads.short.run(door.gatekeeper.authenticate, given)
    name = service.caller.name
    link.identify(name)
    caller.set(name)
    return service
