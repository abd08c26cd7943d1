"""Who asks: found out before a request takes any room but that for finding out."""

from typing import Any

from agentd.ingest.web.api import Api
from agentd.ingest.web.credential import proof_of
from agentd.ingest.web.link import link_of
from agentd.ingest.web.threads import caller
from agentd.model.principal import Principal


async def identify(api: Api, scope: Any) -> Principal:
    """Whatever this task asks of rooms from now on is the principal's.

    Raises Unauthenticated and others for what proves nothing, Full where it has too many
    connections.
    """
    link, proof = link_of(scope), proof_of(scope)
    caller.set(link.address)
    if proof.is_quick:
        who = proof.principal(api.service)
    else:
        who = await api.threads.short.run(proof.principal, api.service)
    link.identify(who.name)
    caller.set(who.name)
    return who
