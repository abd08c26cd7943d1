"""Calls of capabilities, by a daemon."""

from base64 import b64decode
from typing import TYPE_CHECKING

import msgspec

from agentd.client.http.client import as_json
from agentd.client.http.errors import from_event
from agentd.model.api import CallBody, CallView
from agentd.model.errors import AgentdError, BackendLost

if TYPE_CHECKING:
    from agentd.client.http.client import HttpClient
    from agentd.model.service import Emit


def call(
    client: "HttpClient", body: CallBody | bytes, emit: "Emit | None", cancel: int = -1
) -> CallView:
    """Have a capability called. ``body`` in JSON is sent as it is: what is signed must not change.

    ``emit`` gets what the call has before its end; once the descriptor ``cancel`` is readable, the
    call is left, and the daemon ends it. Raises what the daemon says.
    """
    sent = msgspec.Raw(body) if isinstance(body, bytes) else body
    if emit is None and cancel < 0:
        # A signature is for one use, and goes without a key of ours.
        once = isinstance(body, CallBody) or b'"signature"' not in body
        return client.call("POST", "/v1/call", sent, into=CallView, once=once)
    from agentd.client.http.sse import events

    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    data = as_json(sent)
    path = "/v1/call/stream"
    own: OSError | None = None  # what the caller's function failed with: no connection of ours
    with client.open("POST", path, body=data, headers=headers, wake=cancel) as response:
        for event in events(response):
            if event.name == "result":
                return client.decode(CallView, event.data.encode())
            if event.name == "error":
                raise _error(client, event.data)
            piece = _piece(client, event.data)
            try:
                if emit is not None:
                    emit(event.name, piece)
            except OSError as error:
                own = error
                break
    if own is not None:
        raise own
    raise BackendLost(
        "the call was left before its end",
        cause="the daemon ended, or whoever called gave up",
        remediation="it may have been done or not: look before you do it again",
    )


def _error(client: "HttpClient", data: str) -> AgentdError:
    try:
        return from_event(data)
    except msgspec.MsgspecError as error:
        return client.misunderstood(error)


def _piece(client: "HttpClient", data: str) -> bytes:
    try:
        return b64decode(data, validate=True)
    except ValueError as error:
        raise client.misunderstood(error) from error
