"""A driver for each door of ``lying_doors``: REST's own, for they lie about other things than its
form."""

from agentd.testing.doors.rest import Rest


def __getattr__(name: str) -> type[Rest]:
    if name.startswith("_"):
        raise AttributeError(name)
    return type(name, (Rest,), {"door": f"lies-{name}"})
