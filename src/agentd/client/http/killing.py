"""The end of a command that is given up."""

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from agentd.client.http.connection import Woken, soon_or_never
from agentd.model.errors import AgentdError

if TYPE_CHECKING:
    from agentd.client.http.client import HttpClient

KILL_SECONDS = 10.0  # that a daemon has to take the kill of what is given up
_SIGKILL = 9


def kill(client: "HttpClient", path: str) -> None:
    """Have the process at ``path`` killed, as far as its daemon answers in time."""
    try:
        given_up = os.eventfd(1, os.EFD_CLOEXEC)
    except OSError:  # no descriptor is left: without a bound of ours
        given_up = -1
    try:
        with suppress(AgentdError, Woken):
            client.call(
                *("POST", f"{path}/signal", {"signal": _SIGKILL}),
                ends=True,
                wake=given_up,
                on_wake=soon_or_never(KILL_SECONDS),
            )
    finally:
        if given_up >= 0:
            os.close(given_up)
