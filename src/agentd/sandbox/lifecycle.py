"""A sandbox's life as a pure state machine: events in, instructions out. The manager does the I/O.

                       snapshotting
                            |
created -> starting ---- ready ---- paused
               \\           |          /
                +----- ending -> ended

Pausing, resuming and taking a snapshot may fail: the sandbox is then what it was before.
"""

from enum import StrEnum
from typing import NamedTuple

from agentd.model.errors import Conflict, SandboxError


class State(StrEnum):
    CREATED = "created"
    STARTING = "starting"
    READY = "ready"
    PAUSED = "paused"
    SNAPSHOTTING = "snapshotting"
    ENDING = "ending"
    ENDED = "ended"


class LifecycleEvent(StrEnum):
    START = "start"
    WALL_UP = "wall_up"
    GUEST_READY = "guest_ready"
    FAILED = "failed"  # the wall or the agent did not come up
    PAUSE = "pause"
    NOT_PAUSED = "not_paused"
    RESUME = "resume"
    NOT_RESUMED = "not_resumed"
    SNAPSHOT = "snapshot"
    SNAPSHOT_OVER = "snapshot_over"  # it was taken, or it was not
    LOST = "lost"  # the wall died by itself
    DESTROY = "destroy"
    WALL_GONE = "wall_gone"


class Do(StrEnum):
    LAUNCH = "launch"
    CONNECT = "connect"
    FREEZE = "freeze"
    THAW = "thaw"
    CAPTURE = "capture"
    DISCONNECT = "disconnect"
    KILL = "kill"
    FORGET = "forget"


class Step(NamedTuple):
    state: State
    instructions: tuple[Do, ...] = ()


_END = Step(State.ENDING, (Do.DISCONNECT, Do.KILL))

_TABLE: dict[tuple[State, LifecycleEvent], Step] = {
    (State.CREATED, LifecycleEvent.START): Step(State.STARTING, (Do.LAUNCH,)),
    (State.STARTING, LifecycleEvent.WALL_UP): Step(State.STARTING, (Do.CONNECT,)),
    (State.STARTING, LifecycleEvent.GUEST_READY): Step(State.READY),
    (State.STARTING, LifecycleEvent.FAILED): _END,
    (State.READY, LifecycleEvent.PAUSE): Step(State.PAUSED, (Do.FREEZE,)),
    (State.PAUSED, LifecycleEvent.NOT_PAUSED): Step(State.READY),
    (State.PAUSED, LifecycleEvent.RESUME): Step(State.READY, (Do.THAW,)),
    (State.READY, LifecycleEvent.NOT_RESUMED): Step(State.PAUSED),
    # What is asked meanwhile waits; nothing that a caller follows may run.
    (State.READY, LifecycleEvent.SNAPSHOT): Step(State.SNAPSHOTTING, (Do.CAPTURE,)),
    (State.SNAPSHOTTING, LifecycleEvent.SNAPSHOT_OVER): Step(State.READY),
    (State.ENDING, LifecycleEvent.WALL_GONE): Step(State.ENDED, (Do.FORGET,)),
    # Who ends it holds it until it has ended, so what was found ending could not be: once more.
    (State.ENDING, LifecycleEvent.DESTROY): _END,
    # Nothing was built yet: there is nothing to kill.
    (State.CREATED, LifecycleEvent.DESTROY): Step(State.ENDED, (Do.FORGET,)),
}
for _state in (State.STARTING, State.READY, State.PAUSED, State.SNAPSHOTTING):
    _TABLE[_state, LifecycleEvent.LOST] = _END
    _TABLE[_state, LifecycleEvent.DESTROY] = _END

_LATE = (
    LifecycleEvent.DESTROY,
    LifecycleEvent.LOST,
    LifecycleEvent.WALL_GONE,
    LifecycleEvent.FAILED,
    LifecycleEvent.NOT_PAUSED,
    LifecycleEvent.NOT_RESUMED,
    LifecycleEvent.SNAPSHOT_OVER,
)
_STANDING = (State.READY, State.PAUSED, State.SNAPSHOTTING)
_REMEDIES = {
    State.READY: "it runs: leave it out",
    State.SNAPSHOTTING: "try again once its snapshot is there",
    State.PAUSED: "resume it first",
    State.ENDING: "create a new sandbox",
    State.ENDED: "create a new sandbox",
}


def advance(state: State, event: LifecycleEvent) -> Step:
    """Returns the next state, and what to do to get there, in order.

    Ending is idempotent, and cuts short whatever goes on: what comes late to a sandbox that is
    ending or has ended changes nothing, but that one whose end failed can be ended again. For an
    event that makes no sense in ``state`` raises Conflict where the sandbox is ready, paused or
    being copied, else SandboxError.
    """
    step = _TABLE.get((state, event))
    if step is not None:
        return step
    if state in (State.ENDING, State.ENDED) and event in _LATE:
        return Step(state)
    error = Conflict if state in _STANDING else SandboxError
    fix = _REMEDIES.get(state, "")
    if state is State.PAUSED and event is LifecycleEvent.PAUSE:
        fix = "it stands still already: leave it out"
    raise error(f"cannot {event} a sandbox that is {state}", remediation=fix)
