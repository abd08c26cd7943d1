"""Calls of capabilities, by a daemon."""

from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.client.http.errors import from_event
from agentd.model.api import CallBody, CallView
from agentd.model.errors import BackendLost

if TYPE_CHECKING:
    from agentd.client.http.client import Client

Emit = Callable[[str, bytes], None]


def call(client: "Client", body: CallBody | Mapping[str, Any], emit: Emit | None) -> CallView:
    """``body`` as a mapping is sent as it is: what is signed must not change.

    ``emit`` gets what the call has before its end. Raises what the daemon says.
    """
    if emit is None:
        once = isinstance(body, CallBody) or "signature" not in body
        found: CallView = client.call("POST", "/v1/call", body, into=CallView, once=once)
        return found
    from agentd.client.http.sse import events

    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    data = msgspec.json.encode(body)
    with client.open("POST", "/v1/call/stream", body=data, headers=headers) as response:
        for event in events(response):
            if event.name == "result":
                return msgspec.json.decode(event.data, type=CallView)
            if event.name == "error":
                raise from_event(event.data)
            emit(event.name, b64decode(event.data))
    raise BackendLost(
        "the daemon ended amid the call",
        remediation="it may have been done or not: look before you do it again",
    )
