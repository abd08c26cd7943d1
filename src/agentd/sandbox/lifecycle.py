"""A sandbox's life as a pure state machine: events in, instructions out. The manager does the I/O.

created -> starting -> ready <-> paused
               \\         |        /
                +----> ending -> ended
"""

from enum import StrEnum
from typing import NamedTuple

from agentd.model.errors import SandboxError


class State(StrEnum):
    CREATED = "created"
    STARTING = "starting"
    READY = "ready"
    PAUSED = "paused"
    ENDING = "ending"
    ENDED = "ended"


class Event(StrEnum):
    START = "start"
    WALL_UP = "wall_up"
    GUEST_READY = "guest_ready"
    FAILED = "failed"  # the wall or the agent did not come up
    PAUSE = "pause"
    RESUME = "resume"
    LOST = "lost"  # the wall died by itself
    DESTROY = "destroy"
    WALL_GONE = "wall_gone"


class Do(StrEnum):
    LAUNCH = "launch"
    CONNECT = "connect"
    FREEZE = "freeze"
    THAW = "thaw"
    DISCONNECT = "disconnect"
    KILL = "kill"
    FORGET = "forget"


class Step(NamedTuple):
    state: State
    instructions: tuple[Do, ...] = ()


_END = Step(State.ENDING, (Do.DISCONNECT, Do.KILL))

_TABLE: dict[tuple[State, Event], Step] = {
    (State.CREATED, Event.START): Step(State.STARTING, (Do.LAUNCH,)),
    (State.STARTING, Event.WALL_UP): Step(State.STARTING, (Do.CONNECT,)),
    (State.STARTING, Event.GUEST_READY): Step(State.READY),
    (State.STARTING, Event.FAILED): _END,
    (State.READY, Event.PAUSE): Step(State.PAUSED, (Do.FREEZE,)),
    (State.PAUSED, Event.RESUME): Step(State.READY, (Do.THAW,)),
    (State.ENDING, Event.WALL_GONE): Step(State.ENDED, (Do.FORGET,)),
    # Nothing was built yet: there is nothing to kill.
    (State.CREATED, Event.DESTROY): Step(State.ENDED, (Do.FORGET,)),
}
for _state in (State.STARTING, State.READY, State.PAUSED):
    _TABLE[_state, Event.LOST] = _END
    _TABLE[_state, Event.DESTROY] = _END


def advance(state: State, event: Event) -> Step:
    """The next state and what to do to get there, in order.

    Ending is idempotent: DESTROY, LOST and WALL_GONE on a sandbox that is ending or has ended
    change nothing. Raises SandboxError for an event that makes no sense in ``state``.
    """
    step = _TABLE.get((state, event))
    if step is not None:
        return step
    if state in (State.ENDING, State.ENDED) and event in (
        Event.DESTROY,
        Event.LOST,
        Event.WALL_GONE,
        Event.FAILED,
    ):
        return Step(state)
    raise SandboxError(f"cannot {event} a sandbox that is {state}")
