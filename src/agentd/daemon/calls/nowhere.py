"""The Inside of a capability that acts in the daemon: there is no sandbox to be had."""

from typing import NoReturn

from agentd.model.errors import AgentdError


class Nowhere:
    """Everything of it raises: a capability that says it needs no sandbox gets none."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AgentdError(
            f"there is no sandbox to use {name!r} of",
            cause="the capability says that it needs none",
            remediation="let its needs say so: Needs(sandbox=True)",
        )
