"""Which scope a call needs: the table that the shipped policies read, for the daemon too."""

from collections.abc import Mapping
from functools import cache

import msgspec

from agentd.policy.source import shipped

# Of what is not in it: a capability that somebody brought may run anything.
OTHERS = "run"


def scope_of(name: str) -> str:
    """Return the scope of a capability, or of an operation such as ``sandbox.port.v1``."""
    return table().get(name, OTHERS)


@cache
def table() -> Mapping[str, str]:
    calls = msgspec.json.decode((shipped("common") / "calls.json").read_bytes())["calls"]
    return {name: str(call["scope"]) for name, call in calls.items()}
