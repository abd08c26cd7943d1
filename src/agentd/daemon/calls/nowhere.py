"""The Inside of a capability that acts in the daemon: it has no sandbox."""

from typing import NoReturn

from agentd.model.errors import AgentdError


class Nowhere:
    """Raises on every use: a capability that says it needs no sandbox gets none."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AgentdError(
            f"there is no sandbox to use {name!r} of",
            cause="the capability says that it needs none",
            remediation="let its needs say so: Needs(sandbox=True)",
        )
