"""What a daemon does with a sandbox that nobody uses."""

from enum import StrEnum
from typing import NamedTuple

from agentd.model.errors import InvalidInput
from agentd.model.units import parse_duration

#: Why it is paused, or has ended.
IDLE = "idle"
LEAST_SECONDS = 1.0


class OnIdle(StrEnum):
    PAUSE = "pause"
    END = "end"


class IdleRule(NamedTuple):
    """After ``seconds`` without use it is paused or ended; never, for None."""

    seconds: float | None = None
    then: str = ""


NEVER = IdleRule()


def idle_rule(timeout: str | float | None, then: str | None) -> IdleRule:
    """What ``idle_timeout`` and ``on_idle`` ask for. Raises InvalidInput."""
    if then is not None and then not in list(OnIdle):
        raise InvalidInput(
            f"on_idle {str(then)[:64]!r} is neither pause nor end",
            remediation="leave it out for pause",
        )
    if timeout is None:
        if then is not None:
            raise InvalidInput(
                "on_idle is given without idle_timeout",
                remediation='say when a sandbox is idle, as idle_timeout "10m"',
            )
        return NEVER
    seconds = parse_duration(timeout, "idle_timeout")
    if seconds < LEAST_SECONDS:
        raise InvalidInput(
            f"idle_timeout of {seconds:g} s is less than a second",
            remediation="give a second or more",
        )
    return IdleRule(seconds, str(then or OnIdle.PAUSE))
