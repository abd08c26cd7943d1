"""A driver for each door of ``lying_doors``: REST's own, for they lie about other things than its
form."""

from agentd.testing.doors.rest import Rest


class TellsTheTruth(Rest):
    """It does what it says of itself: whose client hangs up has left a command to itself."""

    door = "lies-hanging_up"
    hanging_up = "detaches"


class SaysItDetaches(Rest):
    hanging_up = "detaches"


def __getattr__(name: str) -> type[Rest]:
    if name.startswith("_"):
        raise AttributeError(name)
    return type(name, (Rest,), {"door": f"lies-{name}"})
